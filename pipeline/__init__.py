"""Bounded stages that pass pressure back; standard library only, knows nothing of chat.

errors        the four errors of a channel's ends
channel       a bounded pipe with a send and a receive end, counted by weight
channel_state what its two ends share
permits       counted rights to occupy capacity
watermarks    a high and low pair that says pause and resume
token_bucket  a rate limit without a timer
histogram     mergeable counts of durations, from which quantiles are read
stage         one step: an input channel, a handler, a concurrency limit, order for each key
topology      stages wired in a row: started, drained front to back, reported
streams       map, filter, buffered, buffer_unordered and friends over any asynchronous iterator
"""
