"""The tokenizer of the `tiny` backbone: Qwen's byte-level BPE, trained on product captions and plain English words.

Imports tokenizers and transformers only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

# Qwen2.5-VL's own special tokens; their ids follow the trained vocabulary, as they do there.
SPECIAL_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# A word with the space before it; every digit, mark and white space alone. It is finer than Qwen's own split (which the
# saved tokenizer uses), so no merge crosses a digit or a mark: `)`, `,` and `\n` stay tokens of their own in every context.
TRAINING_SPLIT = Regex(r" ?\p{L}+|\p{N}|[^\s\p{L}\p{N}]|\s")

# Common words, the most frequent first, so that ordinary titles split into few tokens.
COMMON_WORDS = """
the of and a to in is you that it he for was on are as with his they at be this from I have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these would other
into has more her two like him see time could no make than first been its who now people my made over did down only way find
use may water long little very after words called just where most know get through back much before go good new write our used
me man too any day same right look think also around another came come work three word must because does part even place well
such here take why things help put years different away again off went old number great tell men say small every found still
between name should Mr home big give air line set own under read last never us left end along while might next sound below saw
something thought both few those always looked show large often together asked house world going want school important until
form food keep children feet land side without boy once animals life enough took four head above kind began almost live page
got earth need far hand high year mother light parts country father let night following picture being study second eyes soon
times story boys since white days ever paper hard near sentence better best across during today others however sure means knew
try told young miles sun ways thing whole hear example heard several change answer room sea against top turned learn point
city play toward five using himself usually money seen car morning body upon family later turn move face door cut done group
true half red fish plants living black eat short run book gave order open ground cold really table remember tree course front
space inside ago sad early bed girl king queen war love death dead heart star stars dream dreams blood fire ice stone gold
silver green blue brown yellow dark angel devil god ghost monster dragon wolf dog cat horse bird lion bear mouse snake spider
shadow secret mystery murder crime police killer hunter soldier captain doctor lady prince princess wedding bride summer
winter spring autumn christmas moon sky river mountain island forest beach street road bridge train ship boat plane rocket
adventure action comedy drama romance horror thriller fantasy science fiction music song dance party game games race fight
battle final return revenge lost forever beautiful pretty wild crazy happy lonely perfect strange dangerous deadly broken
hidden golden american english french chinese japanese york london paris hollywood jack john james george mary bill bob harry
max joe sam tom part three four five seven ten million thousand hundred cream hair skin oil soap lotion shampoo makeup powder
brush nail polish lip eye color spray perfume bottle pack set ounce toy doll puzzle block board card ball bike shirt dress
shoes boots jacket pants bag watch ring hat glasses sports yoga gym tent cup plate pan knife fork lamp chair sofa desk shelf
box case cover kit tool battery phone camera laptop cable black cotton leather wood steel glass plastic soft natural organic
classic modern vintage professional portable wireless mini extra super pro original
""".split()

SENTENCES = (
    "Describe this item text sequence in one word,",
    "Describe this item image sequence in one word,",
    "Describe this item sequence in one word,",
)


def build_tokenizer(captions: Iterable[str], words: Iterable[str], size: int = 1024) -> Qwen2Tokenizer:
    """A Qwen2 tokenizer of `size` tokens, special tokens included; the same input gives the same tokenizer.

    Args:
        captions: product texts as they stand in prompts.
        words: words that must each be one token after a space.
    Raises ValueError naming the words for which the vocabulary is too small.
    """
    words = sorted(set(words))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(TRAINING_SPLIT, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(captions, words), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    built = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=4096,
    )
    split = [word for word in words if len(built.encode(" " + word, add_special_tokens=False)) != 1]
    if split:
        raise ValueError(f"a vocabulary of {size} tokens splits these words, give it more: {', '.join(split)}")
    return built


def _corpus(captions: Iterable[str], words: Iterable[str]) -> Iterator[str]:
    """Captions as they are, attribute words often enough to win their merges, common words by falling frequency."""
    yield from captions
    for word in words:
        yield f" {word}" * 2000
    for sentence in SENTENCES:
        yield sentence * 500
    for rank, word in enumerate(COMMON_WORDS):
        count = 1 + 6000 // (rank + 20)
        yield f" {word}" * count + f" {word.capitalize()}" * count
