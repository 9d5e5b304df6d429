"""`vilau app RUN`: a page to chat with a trained model about pictures and videos, and to let it draw and edit.

uploads   files -> frames that the model reads
worker    one thread for the model; what it tells on the way, as an iterator
studio    what the page asks of the model, without any page
page      the page, with Gradio (the extra `app`): chat, and canvas for drawings and edits
serve     opens a run and serves its page
"""
