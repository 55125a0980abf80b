"""How fast, beside what others would use: medians of interleaved runs, and the machine's own limits.

python -m benchmarks [all] MODEL      all that follow, on one page
python -m benchmarks decode MODEL     gptcli, transformers, ctranslate2 and llama.cpp on one checkpoint, 32 to 4 bits
python -m benchmarks batch MODEL      many texts at once, beside one and beside transformers' batches
python -m benchmarks lookup MODEL     generate with and without --lookup, on a prompt to quote and on a story
python -m benchmarks quality MODEL --text FILE   what int8 and int4 cost: perplexity, greedy text
python -m benchmarks scaling          tokens/s against size, context and batch, beside what memory allows
python -m benchmarks start MODEL      how long the light commands take, and the first word beside importing torch
python -m benchmarks train SIZE       the training loop beside nanoGPT's and transformers'
python -m benchmarks xray MODEL       what the x-ray costs, beside not looking and beside TransformerLens
"""
