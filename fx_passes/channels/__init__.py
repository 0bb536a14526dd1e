"""Channels of a network's tensors: which of them can only be removed together, and a network without some of them."""

from fx_passes.channels.ties import ChannelFamily, ChannelTies, channel_ties

__all__ = ["ChannelFamily", "ChannelTies", "channel_ties"]
