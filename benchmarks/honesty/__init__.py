"""Right answers, or a word: `make bench-honesty`.

Models with known answers, fitted by every method that applies with its default settings, three
seeds each. A fit is right, or wrong and told, or wrong in silence. PROBDL_SHARED must name the
folder of reference posteriors.

    case.py        what a model's known answer is
    known.py       known answers by quadrature and maximisation in NumPy, without probdl and Pyro
    models/        the models, one file a family
    judge.py       compares a fit with the known answer
    child.py       fits one model in a separate process
    report.py      writes results/honesty.md
    __main__.py    the command
"""
