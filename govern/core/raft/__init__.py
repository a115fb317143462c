"""Consensus among the candidates: the rules of Raft, without clock, chance, disk or network."""
