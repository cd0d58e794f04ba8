//! What the network has done so far, for metrics.

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes in them.
    pub rx_bytes: u64,
    /// Frames and packets received that were not used: damaged, not for us, no room.
    pub rx_dropped: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes in them.
    pub tx_bytes: u64,
    /// Frames and packets that could not be sent.
    pub tx_dropped: u64,
    /// TCP segments received.
    pub tcp_in: u64,
    /// TCP segments sent; one that the device cuts counts once.
    pub tcp_out: u64,
    /// Datagrams received.
    pub udp_in: u64,
    /// Datagrams sent.
    pub udp_out: u64,
    /// Echo requests answered.
    pub echoes: u64,
    /// Packets put together from fragments.
    pub reassembled: u64,
}
