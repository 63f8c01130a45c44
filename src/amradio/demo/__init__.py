"""A local page on which a model answers about pictures; needs `amradio[demo]`, which only `page` and `server` import."""
