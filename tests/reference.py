"""The slow, obvious versions that fast paths are compared with."""

import itertools

import torch


def distance(x, y):
    return float(((x.double() - y.double()) ** 2).sum())


def nearest(x, table):
    return min(range(len(table)), key=lambda k: distance(x, table[k]))


def greedy(x, tables):
    codes = []
    for row in x:
        residual, stack = row.double(), []
        for table in tables:
            stack.append(nearest(residual, table))
            residual = residual - table[stack[-1]].double()
        codes.append(stack)
    return torch.tensor(codes)


def beam(x, tables, width):
    codes = []
    for row in x:
        kept = [((), row.double())]
        for table in tables:
            grown = [
                ((*stack, k), residual - table[k].double())
                for stack, residual in kept
                for k in range(len(table))
            ]
            kept = sorted(grown, key=lambda entry: float(entry[1].square().sum()))[:width]
        codes.append(kept[0][0])
    return torch.tensor(codes)


def exhaustive(x, tables):
    stacks = list(itertools.product(*(range(len(table)) for table in tables)))
    sums = torch.stack(
        [sum(table[k].double() for table, k in zip(tables, s, strict=True)) for s in stacks]
    )
    return torch.tensor([stacks[int(((row.double() - sums) ** 2).sum(1).argmin())] for row in x])
