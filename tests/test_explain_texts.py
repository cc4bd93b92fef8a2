"""`xai-discern explain --text-file`: scores against the classes called by hand, what is cut off, and failures."""

import html
import re

import numpy as np
import pytest
import torch
from explaining import explain, stopped
from tiny_tokenizer import WORDS, word_tokenizer
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForSequenceClassification

from captum_ext import CDAM, AttentionMap, RelevancePropagation
from xai_discern import _texts


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A BERT of three classes of texts."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(WORDS), **sizes, id2label={0: "bad", 1: "fair", 2: "good"})
    model = BertForSequenceClassification(config).eval()
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return model, folder


def test_texts_of_a_file_are_explained_token_by_token(classifier, tmp_path, capsys):
    network, folder = classifier
    (tmp_path / "texts.txt").write_text("the cat sat\n\na dog\n")
    facts = explain(
        *(tmp_path / "out", "--text-file", tmp_path / "texts.txt", "--model", folder, "--class", "good", "--vs", "bad"),
        *("--method", "cdam,attention,relevance"),
    )
    first, second = facts["texts"]
    assert first["notes"] == []
    ids = word_tokenizer()("the cat sat", return_tensors="pt")["input_ids"]
    maps = [CDAM(network).attribute(ids, number)[0] for number in (2, 0)]
    np.testing.assert_allclose(first["maps"][0]["scores"], maps[0] - maps[1], rtol=1e-3, atol=1e-8)
    attention = AttentionMap(network).attribute(ids, 2)[0]
    np.testing.assert_allclose(first["maps"][1]["scores"], attention, rtol=1e-4)
    difference = RelevancePropagation(network).attribute(ids, lambda output: output[..., 2] - output[..., 0])[0]
    np.testing.assert_allclose(first["maps"][2]["scores"], difference, rtol=1e-3, atol=1e-8)
    assert (first["tokens"], second["tokens"]) == (["the", "cat", "sat"], ["a", "dog"])
    assert {row["name"] for row in first["top"]} == {"bad", "fair", "good"}
    page = (tmp_path / "out" / "texts.html").read_text()
    assert page.count("<article>") == 2
    assert "good, not bad" in page
    assert "the cat sat" in capsys.readouterr().out


def test_a_text_longer_than_the_model_reads_is_cut_and_one_that_fails_costs_itself_only(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **sizes, max_position_embeddings=6))
    network.eval().save_pretrained(tmp_path / "bert")
    word_tokenizer().save_pretrained(tmp_path / "bert")
    (tmp_path / "texts.txt").write_text("the cat\n" + "the cat sat left of the dog\na dog\n")
    pieces = _texts._pieces
    monkeypatch.setattr(_texts, "_pieces", lambda text, *given: 1 / (text != "a dog") and pieces(text, *given))
    given = ("--text-file", tmp_path / "texts.txt", "--model", tmp_path / "bert")
    short, long, failed = explain(tmp_path / "out", *given)["texts"]
    assert (short["cut"], long["cut"]) == (0, 1)
    assert long["tokens"] == ["the", "cat", "sat", "left", "of", "the"]
    assert len(long["maps"][0]["scores"]) == 6
    assert failed == {"text": "a dog", "error": "ZeroDivisionError: division by zero"}
    assert "a dog: skipped: division by zero" in capsys.readouterr().out
    page = (tmp_path / "out" / "texts.html").read_text()
    assert "The last 1 tokens are more than the model reads" in page
    assert "Skipped: ZeroDivisionError" in page


@pytest.mark.slow
def test_a_model_that_says_no_limit_reads_whole_texts(tmp_path, capsys):
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    special = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    network = T5ForSequenceClassification(T5Config(vocab_size=len(WORDS), **sizes, **special, num_labels=3)).eval()
    network.save_pretrained(tmp_path / "t5")
    word_tokenizer().save_pretrained(tmp_path / "t5")
    (tmp_path / "texts.txt").write_text("the cat " * 300 + "[EOS]\n")
    (text,) = explain(tmp_path / "out", "--text-file", tmp_path / "texts.txt", "--model", tmp_path / "t5")["texts"]
    assert (text["cut"], len(text["tokens"])) == (0, 601)
    best = text["maps"][0]["target"]["class"]
    ids = word_tokenizer()("the cat " * 300 + "[EOS]", return_tensors="pt")["input_ids"]
    scores = CDAM(network).attribute(ids, best)[0]
    np.testing.assert_allclose(text["maps"][0]["scores"], scores, rtol=1e-3, atol=1e-8)
    (note,) = text["notes"]  # the decoder reads the same words beside the encoder
    assert re.match(r"The prediction also depends on \d+ of this model's", note)
    assert note in html.unescape((tmp_path / "out" / "texts.html").read_text())
    assert f"  Note: {note}" in capsys.readouterr().out


def test_lines_are_those_of_an_editor_and_marks_of_encodings_are_no_tokens(classifier, tmp_path, capsys):
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffthe cat\r\na\x0cdog\u2028sat\r\n \r\n".encode())
    given = ("--text-file", file, "--model", classifier[1])
    texts = explain(tmp_path / "out", *given)["texts"]
    assert [text["text"] for text in texts] == ["the cat", "a\x0cdog\u2028sat"]
    assert texts[0]["tokens"] == ["the", "cat"]
    file.write_bytes("caf\u00e9".encode("latin-1"))
    code, said = stopped(capsys, "explain", *given, "--out", tmp_path / "latin")
    assert code == 1
    assert f"{file} is not in UTF-8 (at byte 3): save it as UTF-8." in said
