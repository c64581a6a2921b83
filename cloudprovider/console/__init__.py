"""The console: the web page "Networks > Load Balancers".

It shows and changes what the API server lets its user see and change, with that user's own token; it has no rights,
and no credentials, of its own. Pages are made on the server (Jinja2); htmx, vendored, swaps parts of them.
"""
