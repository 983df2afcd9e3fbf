"""A CLAP and a tagger in transformers' own layout, of a few thousand random weights."""

from pathlib import Path

import torch

WORDS = ("<s>", "<pad>", "</s>", "<unk>", "a", "red", "blue", "ball")
POSITIONS = 20  # of the text model, of which 18 are tokens
RATE = 8000  # Hz of both


def tiny_clap(folder: Path, fused: bool = False) -> Path:
    """CLAP of 2 s at 8000 Hz, width 8; `fused` as the checkpoints that hear long sounds in parts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, PreTrainedTokenizerFast

    text = dict(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=16, max_position_embeddings=POSITIONS)  # fmt: skip
    sound = dict(spec_size=32, num_mel_bins=8, patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[1, 2],
                 hidden_size=16, window_size=4, num_hidden_layers=2, enable_fusion=fused,
                 fusion_type="aff_2d" if fused else None)  # fmt: skip
    torch.manual_seed(0)
    net = ClapModel(ClapConfig(text_config=text, audio_config=sound, projection_dim=8, initializer_factor=20.0))
    net.save_pretrained(folder)
    extractor = ClapFeatureExtractor(feature_size=8, max_length_s=2, sampling_rate=RATE, hop_length=320,
                                     fft_window_size=512, frequency_max=4000,
                                     truncation="fusion" if fused else "rand_trunc")  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"single": "<s> $A </s>", "special_tokens": [("<s>", 0), ("</s>", 2)]}
    tokenizer.post_processor = processors.TemplateProcessing(**ends)
    named = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    ClapProcessor(extractor, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)).save_pretrained(folder)
    return folder


def tiny_tagger(folder: Path, head: bool = True) -> Path:
    """AST of 5 classes at 8000 Hz; without its head it is no tagger."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ASTModel

    torch.manual_seed(0)
    config = ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                       num_mel_bins=16, max_length=128, patch_size=8, frequency_stride=8, time_stride=8, num_labels=5,
                       initializer_range=0.5)  # fmt: skip
    (ASTForAudioClassification if head else ASTModel)(config).save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=16, max_length=128, sampling_rate=RATE).save_pretrained(folder)
    return folder


def tiny_wave_tagger(folder: Path) -> Path:
    """wav2vec 2.0 of 3 classes at 8000 Hz, which takes waves of any length."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    torch.manual_seed(0)
    config = Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                            conv_dim=(8, 8), conv_stride=(20, 8), conv_kernel=(20, 8), num_conv_pos_embeddings=4,
                            num_conv_pos_embedding_groups=2, num_labels=3, classifier_proj_size=8)  # fmt: skip
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)
    return folder
