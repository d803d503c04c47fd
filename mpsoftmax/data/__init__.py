"""Labelled images: the field's formats read and written, sampling order, decoding, loading."""
