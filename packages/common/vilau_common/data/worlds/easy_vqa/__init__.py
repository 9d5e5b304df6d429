"""The third-party easy-VQA set (PyPI `easy-vqa`): one coloured shape on a light ground, with yes/no and other
questions."""
