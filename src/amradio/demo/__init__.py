"""A local page on which a model answers about pictures; `page` and `server` import gradio (`amradio[demo]`), nothing else does."""
