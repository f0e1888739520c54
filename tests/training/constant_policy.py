"""A tiny decoder that has learned one answer by heart and gives it to every prompt."""

import torch

from training.teacher.decoder import make_decoder, train_tokenizer
from training.teacher.policy import Policy, save_policy
from training.teacher.prompts import PromptBook
from training.teacher.sft_rows import SftRow, encode_rows
from training.teacher_recipe import DecoderRecipe

DECODER = DecoderRecipe(vocabulary=360, width=32, layers=1, heads=2, kv_heads=1, context=320)


def save_constant_policy(folder, run, pairs, text, *, steps=40):
    """Save a policy that answers `text`, whatever it is asked; with 0 steps one that babbles."""
    book = PromptBook.load(run.recipe.teacher.prompt, run.recipe.label_scheme)
    torch.manual_seed(0)
    rows = [SftRow(pair.pair_id, tuple(book.messages(pair, "unified")), text) for pair in pairs]
    tokenizer = train_tokenizer([message["content"] for row in rows for message in row.prompt] + [text] * 9, DECODER)
    model = make_decoder(DECODER, tokenizer)
    encoded = encode_rows(rows, tokenizer, thinking=False, max_tokens=DECODER.context)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps):
        row = encoded[step % len(encoded)].features()
        loss = model(**{name: torch.from_numpy(values).long()[None] for name, values in row.items()}).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    save_policy(Policy(model, tokenizer, "constant"), folder)
