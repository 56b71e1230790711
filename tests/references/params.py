"""Settings of requests in plain Python: lists of numbers, off where a request says nothing."""

import numpy as np

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def stack(requests):
    return {
        name: [off if r.get(name) is None else r[name] for r in requests]
        for name, off in OFF.items()
    }


def as_arrays(columns):
    dtypes = {"temperature": "float32", "top_k": "int32", "top_p": "float32", "min_p": "float32"}
    return {name: np.array(column, dtypes[name]) for name, column in columns.items()}
