"""The forward pass of a BERT cross-encoder in bfloat16, as fast as training needs it.

Against the network of transformers under autocast: pairs are padded only to the longest of those of like length
(a third to a half of the tokens of a group are padding otherwise), weights are converted once a step instead of once
a use, and the last layer computes only the first token of each pair.
"""

import torch
from torch.nn import functional

WASTE = 1.15  # padded length against the shortest of a chunk, beyond 4 tokens


class Packed:
    """`network` with bfloat16 copies of the weights that learn. `refresh` before a step, `gradients` after it."""

    def __init__(self, network, tokenizer):
        self.network, self.tokenizer, self.weights = network, tokenizer, {}

    def refresh(self):
        """Copies the weights: products in bfloat16, LayerNorm and the head in F32."""
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                half = ".encoder." in name and "LayerNorm" not in name
                self.weights[name] = parameter.detach().to(torch.bfloat16 if half else torch.float32).requires_grad_()

    def gradients(self):
        """One per weight that learns, in the order of the network's parameters; None where nothing was learned."""
        return [weight.grad for weight in self.weights.values()]

    def linear(self, name, x):
        return functional.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def norm(self, name, x):
        return functional.layer_norm(x, x.shape[-1:], self.weights[name + ".weight"], self.weights[name + ".bias"],
                                     self.network.config.layer_norm_eps)

    def logits(self, pairs, max_tokens, dropout=0.0):
        """One logit per pair; `dropout` is of what each half of a layer adds, and of the embeddings."""
        config, embeddings = self.network.config, self.network.bert.embeddings
        heads, wide = config.num_attention_heads, config.hidden_size
        encoded = self.tokenizer([a for a, _ in pairs], [b for _, b in pairs], truncation="longest_first", max_length=max_tokens)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        places = sorted(range(len(pairs)), key=lengths.__getitem__)
        chunks = []  # of places
        for place in places:
            if chunks and lengths[place] <= WASTE * lengths[chunks[-1][0]] + 4:
                chunks[-1].append(place)
            else:
                chunks.append([place])
        shapes = [(len(chunk), lengths[chunk[-1]]) for chunk in chunks]
        ids, types = (torch.tensor([item for chunk, (_, long) in zip(chunks, shapes) for place in chunk
                                    for item in encoded[key][place] + [0] * (long - lengths[place])])
                      for key in ("input_ids", "token_type_ids"))
        positions = torch.cat([torch.arange(long).repeat(count) for count, long in shapes])
        masks = [torch.where(torch.arange(long) < torch.tensor([[[[lengths[place]]]] for place in chunk]), 0.0, -1e4).to(torch.bfloat16)
                 for chunk, (_, long) in zip(chunks, shapes)]
        drop = (lambda value: functional.dropout(value, dropout)) if dropout else (lambda value: value)
        with torch.no_grad():
            x = drop(embeddings.LayerNorm(embeddings.word_embeddings(ids) + embeddings.position_embeddings(positions)
                                          + embeddings.token_type_embeddings(types)).to(torch.bfloat16))
        rows = [count * long for count, long in shapes]
        firsts = torch.cat([start + torch.arange(count) * long
                            for start, (count, long) in zip([sum(rows[:i]) for i in range(len(rows))], shapes)])
        for layer in range(config.num_hidden_layers):
            at, last = f"bert.encoder.layer.{layer}.", layer == config.num_hidden_layers - 1
            mine = x[firsts] if last else x
            query = self.linear(at + "attention.self.query", mine) * (wide // heads) ** -0.5
            key, value = (self.linear(at + f"attention.self.{name}", x) for name in ("key", "value"))
            parts = []
            for q, k, v, mask, (count, _) in zip(query.split([count for count, _ in shapes] if last else rows),
                                                 key.split(rows), value.split(rows), masks, shapes):
                q, k, v = (part.view(count, -1, heads, wide // heads).transpose(1, 2) for part in (q, k, v))
                parts.append((torch.softmax(q @ k.transpose(2, 3) + mask, dim=-1) @ v).transpose(1, 2).reshape(-1, wide))
            mine = self.norm(at + "attention.output.LayerNorm",
                             mine + drop(self.linear(at + "attention.output.dense", torch.cat(parts))))
            inner = functional.gelu(self.linear(at + "intermediate.dense", mine))
            x = self.norm(at + "output.LayerNorm", mine + drop(self.linear(at + "output.dense", inner)))
        out = self.linear("classifier", drop(torch.tanh(self.linear("bert.pooler.dense", x.float())))).squeeze(-1)
        return out[torch.tensor(places).argsort()]
