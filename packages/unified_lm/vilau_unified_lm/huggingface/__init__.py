"""The unified LM as a model of transformers: what its Auto classes, `generate` and pipelines expect of one.

tokens.py      the one stream of ids that holds text and codes, taken apart and put together
processor.py   texts and pictures -> input_ids and pixel_values; generated ids -> strings and pictures
inputs.py      those tensors -> documents and mixed sequences, which the model and the engine read
requests.py    those prompts -> the engine's requests
settings.py    `generate`'s settings, those that transformers has and those that it has not
model.py       `UnifiedLMForConditionalGeneration`: forward and generate
export.py      a run, or a released checkpoint, as a directory for `from_pretrained` (`vilau export`)
card.py        its model card
"""
