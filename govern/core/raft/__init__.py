"""Raft among the candidates: who leads, and what is in the metadata log (Ongaro's thesis, with the repairs that years of use have taught).

One `core.RaftCore` is one candidate. It knows no clock, no chance, no disk and no network: it is told what arrives and what time it is, and
hands out messages, writes for the disk, and committed entries. Clocks and chance decide when somebody stands for election and how fresh a
lease is, never what is committed.

R1   A vote is given to one candidate per term, to one whose log is not behind (last term, then last index), and not within an election
     timeout of hearing a leader, unless the leader itself wants the change (`transfer`). A trial vote (PreVote) passes the same tests,
     changes nothing, and is not kept. After a restart a member behaves as if it had heard a leader just then: it may have. Who led has
     heard a leader, itself, when the newest round began that a majority answered.
R2   A grant carries the term that was asked for, a refusal one's own.
R3   A lower term is answered with one's own by whoever gets an Append, a piece of a snapshot, a vote or a trial vote of it: nobody is stuck
     with a term that others have passed.
R4   A new leader appends a no-op. Until it is committed there are no reads and no changes of the membership.
R5   A leader commits by counting copies of entries of its own term only; older ones are committed with them.
R6   A leader that did not hear a majority for an election timeout steps down.
R7   The lease is 0.8 election timeouts from the beginning of the newest round that a majority answered. Reads do not use it: they wait
     for a round that began after they were asked for.
R8   Only a voter of the membership in force in its own log stands for election. Who is asked for a vote gives it, voter or not: it may be
     one and not know it yet.
R9   To hand the leadership over: take no proposals, wait until the other has everything, tell it to stand at once, give up the lease.
     If that has not worked after an election timeout, go on; if the other was told already, by standing again oneself: only a new term
     makes the offer void, and with it a lease possible.
R10  An election timeout is E·(1 + (rank + U(0, ½)) / n), rank among the n voters by node id, the largest first, drawn anew for each
     attempt. The ranges do not overlap, so healthy candidates do not split the vote.
R11  A membership is in force from the moment its entry is in the log, and no longer when the entry is cut off. One change at a time, by one
     member (see `membership`).

Durability: everything that could be regretted waits for the disk. Term, vote and commit index are one record.

W1   Votes, requests for votes, and answers leave only when the term and the vote they speak of are durable, or a later term is: then no
     other vote can be given in theirs.
W2   An acceptance names no entry that is not durable here in the place of which it speaks.
W3   A leader's Appends go out while its own disk is busy; it counts itself only with what is on its disk. So a leader whose disk hangs
     goes on as long as a majority of the voters writes without it.
W4   Handed out is what is committed, whether or not it is on the own disk yet: a majority has it.

Known limit: a member with a torn or rolled-back disk must not come back as the same `Member`; that is for the storage to see.
"""
