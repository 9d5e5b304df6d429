"""VILA (Lin et al. 2023, arXiv 2312.07533), the baseline: the same LM on continuous features, which it reads only.

config.py     what is saved beside the weights
projector.py  from patches to the LM's places, 2×2 of them joined where asked
model.py      image encoder, projector, backbone; text loss
data.py       picture shards -> packed documents with their pixels
task.py, train.py       `vilau train-vila`
session.py, evaluate.py questions asked of a trained model
"""
