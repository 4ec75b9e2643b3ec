//! A UDP relay between one accepting endpoint and its callers, which can fall silent in either direction.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

pub(super) struct Relay {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    drop_forth: AtomicBool,
    drop_back: AtomicBool,
    forth: AtomicU64,
}

impl Relay {
    /// Relays to `target`; answers go to whoever sent last, so use it for one caller, or for many that get no answer.
    pub(super) async fn to(target: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        back.connect(target).await.unwrap();
        let address = front.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(run(front, back, Arc::clone(&shared)));
        Self { address, shared, task }
    }

    /// Answers are lost from now on.
    pub(super) fn swallow_answers(&self) {
        self.shared.drop_back.store(true, Ordering::Relaxed);
    }

    /// The cable is cut.
    pub(super) fn cut(&self) {
        self.shared.drop_forth.store(true, Ordering::Relaxed);
        self.swallow_answers();
    }

    /// The cable is whole again.
    pub(super) fn mend(&self) {
        self.shared.drop_forth.store(false, Ordering::Relaxed);
        self.shared.drop_back.store(false, Ordering::Relaxed);
    }

    /// Datagrams passed on towards the accepting endpoint.
    pub(super) fn passed(&self) -> u64 {
        self.shared.forth.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(front: UdpSocket, back: UdpSocket, shared: Arc<Shared>) {
    let mut caller = None;
    let (mut forth, mut answer) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            got = front.recv_from(&mut forth) => {
                let (length, from) = got.unwrap();
                caller = Some(from);
                if !shared.drop_forth.load(Ordering::Relaxed) {
                    shared.forth.fetch_add(1, Ordering::Relaxed);
                    let _ = back.send(&forth[..length]).await;
                }
            }
            got = back.recv(&mut answer) => {
                let (Ok(length), Some(caller)) = (got, caller) else { continue };
                if !shared.drop_back.load(Ordering::Relaxed) {
                    let _ = front.send_to(&answer[..length], caller).await;
                }
            }
        }
    }
}
