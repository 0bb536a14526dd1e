"""Channels of a network's tensors: which of them can only be removed together, and a network without some of them."""

from fx_passes.channels.ties import ChannelTies, channel_ties

__all__ = ["ChannelTies", "channel_ties"]
