"""Text from its source to blocks of tokens.

`readers.read_documents` yields named documents, `token_corpus.load_token_corpus` makes a corpus of
token ids of them, `blocks.Blocks` cuts it into training sequences, `order.block_order` says in
which order they come. Nothing here imports the rooms beside it.
"""
