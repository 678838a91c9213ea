"""Messages of the wire formats, generated from protos/ by tools/make_protos.py; not to be edited by hand."""
