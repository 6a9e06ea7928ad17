"""The work of the frozen encoder: which texts share a batch and a pack, whatever order they come in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sparse_evidence.core.features.embeddings import BATCH_TOKENS, PACK_TEXTS, embed
from sparse_evidence.core.features.encoders import Encoder, locate
