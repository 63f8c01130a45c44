"""How the embedded teachers are made: one file a teacher, `pictures` feeds them and `measure` judges them."""
