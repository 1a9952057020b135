"""Token ids as OpenAI's tokenizer gives them, by three implementations; texts that are too long."""

import gzip
import pickle
import random
import sys
from functools import lru_cache, partial
from importlib.util import find_spec

import pytest
import torch
from transformers import CLIPTokenizer

from lightning_cil.networks.audioclip import Tokenizer, bpe, cut_padding, tokenizer

needs_instant = pytest.mark.skipif(
    find_spec("instant_clip_tokenizer") is None, reason="instant-clip-tokenizer has no wheel for this Python"
)

GOLDEN = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "hello world!": [3306, 1002, 256],
}
"""With OpenAI's merges."""

PROBES = [
    "a photo of a cat",
    "it's the dog's 42nd birthday!!",
    "Bighorn  sheep, (ovis)",
    "naïve café 東京 ☃ 10²Ⅷ",
    "don't we'll I'd they're",
    "can_opening a_b-c",
    "hello\tworld\n!",
    "'sling 5's ??'s",
]


@lru_cache
def merges():
    """As many merges as CLIP has, of random earlier symbols; the frequent ones make up English words."""
    rng, pairs = random.Random(0), {}
    inner, final = [*"etaoinshrdlucmfwypvbgkqjxz"], [f"{c}</w>" for c in "etaoinshrdlu!?s"]
    while len(pairs) < bpe.NUM_MERGES:
        first = rng.choice(inner)
        second = rng.choice(inner if rng.random() < 0.5 else final)
        if first + second not in pairs:
            pairs[first + second] = first, second
            if len(first + second) < 6:
                inner.append(first + second)
    return list(pairs.values())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Those merges as OpenAI's file has them: gzipped, a first line of its own, more lines than are used."""
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges()), "un used", ""]
    path = tmp_path_factory.mktemp("bpe") / tokenizer.FILE_NAME
    path.write_bytes(gzip.compress("\n".join(lines).encode(), compresslevel=1))
    return path


def random_texts(count):
    rng = random.Random(1)
    alphabet = ["".join(pair).replace("</w>", " ") for pair in merges()[:500]] + list("0123 ,.'-_éß東☃²")
    return ["x" + "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12))) for _ in range(count)]


class TestBytePairs:
    def test_agree_with_transformers(self, file):
        ours = Tokenizer(path=file, verify=False)
        single = list(bpe.byte_symbols().values())
        entries = [*single, *(s + "</w>" for s in single), *(a + b for a, b in merges())]
        entries += ["<|startoftext|>", "<|endoftext|>"]
        huggingface = CLIPTokenizer(vocab={s: i for i, s in enumerate(entries)}, merges=merges())
        assert len(huggingface) == ours.vocab_size == 49_408
        for text in [*PROBES, *random_texts(200)]:
            row = ours.encode([text])[0]
            assert row[: row.argmax() + 1].tolist() == huggingface(text)["input_ids"], text

    @needs_instant
    def test_agree_with_instant_clip_tokenizer(self, file, tmp_path):
        from instant_clip_tokenizer import Tokenizer as Instant

        ours = Tokenizer(path=file, verify=False)
        (tmp_path / "plain.txt").write_bytes(gzip.decompress(file.read_bytes()))
        instant = Instant.load(str(tmp_path / "plain.txt"), bpe.VOCAB_SIZE)
        for text in [*PROBES, *random_texts(200)]:
            row = ours.encode([text])[0]
            assert row[1 : row.argmax()].tolist() == list(instant.encode(text)), text

    def test_plain_file(self, file, tmp_path):
        (tmp_path / "plain.txt").write_bytes(gzip.decompress(file.read_bytes()))
        plain = Tokenizer(path=tmp_path / "plain.txt", verify=False)
        assert torch.equal(plain.encode(PROBES), Tokenizer(path=file, verify=False).encode(PROBES))

    def test_merges_are_applied_by_rank_everywhere(self):
        encode = bpe.BytePairEncoder([("b", "a"), ("a", "b"), ("ba", "ba")])
        ids = {symbol: i for i, symbol in enumerate(bpe.byte_symbols().values())}
        # b a b a b a$: `b a` twice from the left, then `ba ba`; the last a ends the word and has no merge.
        assert encode("bababa") == [512 + 2, ids["b"], 256 + ids["a"]]

    def test_words(self):
        found = list(bpe.split_words("they're 42 c'est a_b ½?!"))
        assert found == ["they", "'re", "4", "2", "c", "'", "est", "a", "_", "b", "½", "?!"]


class TestInstalled:
    @needs_instant
    def test_golden_ids(self):
        found = Tokenizer()
        assert found.source == "instant-clip-tokenizer"
        for text, ids in GOLDEN.items():
            row = found.encode([text])[0]
            assert row.shape == (77,)
            assert row[: len(ids) + 2].tolist() == [49_406, *ids, 49_407]
            assert not row[len(ids) + 2 :].any()

    def test_file_of_an_installed_package_comes_first_and_is_not_imported(self, file, tmp_path, monkeypatch):
        package = tmp_path / "laion_clap"
        (package / "clap_module").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('was imported')")
        found = package / "clap_module" / tokenizer.FILE_NAME
        found.write_bytes(file.read_bytes())
        monkeypatch.syspath_prepend(tmp_path)
        assert Tokenizer(verify=False).source == str(found)
        with pytest.raises(ValueError, match=r"has the SHA-256 .*, expected 924691ac"):
            Tokenizer()
        assert "laion_clap" not in sys.modules

    def test_path_comes_before_it(self, file, monkeypatch):
        monkeypatch.setattr(tokenizer, "installed_file", lambda: pytest.fail("looked for a package"))
        assert Tokenizer(path=file, verify=False).source == str(file)

    def test_nothing_installed(self, monkeypatch):
        monkeypatch.setattr(tokenizer, "find_spec", lambda name: None)
        with pytest.raises(FileNotFoundError, match=r"No vocabulary of CLIP .*pip install lightning-cil\[clip\]"):
            Tokenizer()

    @needs_instant
    def test_vocabulary_of_another_size_is_noticed(self, monkeypatch):
        class Two:
            def end_of_text(self):
                return 1

        monkeypatch.setattr("instant_clip_tokenizer.Tokenizer", Two)
        with pytest.raises(ValueError, match="has a vocabulary of 2, expected 49408"):
            Tokenizer()


class TestBadFiles:
    @pytest.mark.parametrize("content", [b"", b"#version\nonly two\n", b"\x1f\x8bbroken", b"\xff\xfe\x00"])
    def test_other_content(self, tmp_path, content):
        (tmp_path / "bpe.txt").write_bytes(content)
        with pytest.raises(ValueError, match=r"expected OpenAI's `bpe_simple_vocab_16e6\.txt\.gz`"):
            Tokenizer(path=tmp_path / "bpe.txt")

    def test_half_a_download(self, file, tmp_path):
        (tmp_path / "bpe.gz").write_bytes(file.read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"could not be read .*download it again"):
            Tokenizer(path=tmp_path / "bpe.gz")

    def test_no_file(self):
        with pytest.raises(FileNotFoundError, match=r"`path='nowhere\.gz'` is no file"):
            Tokenizer(path="nowhere.gz")

    def test_file_that_is_not_openais(self, file):
        with pytest.raises(ValueError, match=r"expected 924691ac.*set `verify: false` if it is yours"):
            Tokenizer(path=file)


class TestBytes:
    def test_are_padded_with_zeros(self):
        found = Tokenizer(258, 8).encode(["Ab", "é"])
        assert found.tolist() == [[256, 97, 98, 257, 0, 0, 0, 0], [256, 0xC3, 0xA9, 257, 0, 0, 0, 0]]
        assert found.dtype == torch.int64

    def test_need_no_path(self):
        with pytest.raises(ValueError, match="for a text tower that reads bytes"):
            Tokenizer(258, path="bpe.txt")


@pytest.fixture(params=["merges", "bytes"])
def make(request, file):
    if request.param == "bytes":
        return partial(Tokenizer, 258, 20)
    return partial(Tokenizer, path=file, verify=False)


class TestTooLong:
    text = "qxz " * 80

    def test_is_an_error(self, make):
        with pytest.raises(ValueError, match=r"The text 'qxz qxz .*…' has \d+ tokens with start and end, expected at"):
            make().encode(["a", self.text])

    def test_or_loses_its_last_tokens_but_not_the_end(self, make):
        encoder = make(truncate=True)
        with pytest.warns(UserWarning, match="the last [0-9]+ before the end are lost"):
            row = encoder.encode([self.text])[0]
        assert row[0] == encoder.start
        assert row[-1] == encoder.end
        assert (row == encoder.end).sum() == 1

    def test_longest_that_fits(self, make):
        encoder = make()
        length = encoder.context_length  # a digit is a token of its own
        assert encoder.encode(["7" * (length - 2)])[0].argmax() == length - 1
        with pytest.raises(ValueError, match=f"has {length + 1} tokens"):
            encoder.encode(["7" * (length - 1)])


class TestBadInput:
    def test_one_string(self):
        with pytest.raises(TypeError, match=r"expected a list of strings: \['dog'\]"):
            Tokenizer(258).encode("dog")

    @pytest.mark.parametrize("text", ["", "  "])
    def test_nothing(self, text):
        with pytest.raises(ValueError, match="expected at least one word"):
            Tokenizer(258).encode([text])

    def test_vocabulary_that_nobody_has(self):
        with pytest.raises(ValueError, match=r"`vocab_size=1000`, expected 49408 \(CLIP's\) or 258 \(bytes\)"):
            Tokenizer(1000)


def test_cut_padding():
    tokens = torch.tensor([[9, 1, 10, 0, 0], [9, 10, 0, 0, 0]])
    assert cut_padding(tokens).tolist() == [[9, 1, 10], [9, 10, 0]]


def test_travels_to_other_processes(make):
    encoder = make()
    assert torch.equal(pickle.loads(pickle.dumps(encoder)).encode(["a dog"]), encoder.encode(["a dog"]))
