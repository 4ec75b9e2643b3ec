//! Congestion control: quinn's Cubic, with a way for the last word to get out.
//!
//! A link that is closed while its congestion window is full never sends the close in quinn-proto up to 0.11.19: the packet
//! is held back as if it carried the data still queued, and a closed connection takes no acknowledgements any more, so the
//! window never empties (quinn issue 2785, mended on its main branch by pull request 2787). That is what cancelling a bulk
//! transfer looks like, and the peer would learn of it only by its idle timeout. So the window is opened just before the
//! close: from then on nothing but the close is sent. Once a quinn with the repair is released, this module can go; the test
//! `a_close_gets_through_a_full_window` tells.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Above 4 GiB quinn's pacer stands aside, too.
const WIDE_OPEN: u64 = 1 << 33;

/// Makes the controllers of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Factory {
    /// Opens the window of every link: the endpoint is being shut down.
    all_closing: Arc<AtomicBool>,
}

impl Factory {
    /// To be called just before the endpoint is closed.
    pub(super) fn let_all_closes_out(&self) {
        self.all_closing.store(true, Ordering::Relaxed);
    }
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::new(CubicConfig::default()).build(now, current_mtu);
        Box::new(Gate { inner, closing: Arc::default(), all_closing: Arc::clone(&self.all_closing) })
    }
}

/// To be called just before the connection is closed.
pub(super) fn let_close_out(connection: &quinn::Connection) {
    if let Ok(gate) = connection.congestion_state().into_any().downcast::<Gate>() {
        gate.closing.store(true, Ordering::Relaxed);
    }
}

struct Gate {
    inner: Box<dyn Controller>,
    closing: Arc<AtomicBool>,
    all_closing: Arc<AtomicBool>,
}

impl Controller for Gate {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        let closing = self.closing.load(Ordering::Relaxed) || self.all_closing.load(Ordering::Relaxed);
        if closing { WIDE_OPEN } else { self.inner.window() }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    /// The copy shares the gate: that is how [`let_close_out`] reaches it.
    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            closing: Arc::clone(&self.closing),
            all_closing: Arc::clone(&self.all_closing),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
