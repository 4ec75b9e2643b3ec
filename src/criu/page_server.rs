//! decamp's side of CRIU's page-server protocol (criu/page-xfer.c): at the final dump CRIU sends its pages here instead of
//! writing them, and only what changed crosses the wire.
//!
//! ```text
//! CRIU                                   we
//! OPEN2(object) ────────────────────────▶
//!               ◀──────────────────────── 1 byte: has a parent (0)
//! ADD_F(first, count, flags) + pages ───▶  (ascending; only PRESENT ones carry bytes)
//! ... next OPEN2 ...
//! CLOSE | FORCE_CLOSE ──────────────────▶
//!               ◀──────────────────────── i32 status (0)
//! ```
//! Records are 32 bytes, little-endian: `u32 command, 4 pad, u64 pages, u64 address, u64 object`. There is no handshake. The
//! socket is TCP because the runtime cannot hand CRIU a descriptor; it is bound to loopback, serves one connection, and only
//! one whose socket belongs to root.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::model::{ObjectId, PAGE_SIZE, PageIndex};

const ADD: u32 = 1;
const OPEN: u32 = 3;
const OPEN2: u32 = 4;
const PARENT: u32 = 5;
const ADD_F: u32 = 6;
const CLOSE: u32 = 0x1023;
const FORCE_CLOSE: u32 = 0x1024;
/// Page data follow (criu/include/pagemap.h).
const PE_PRESENT: u32 = 4;
/// Pages of one record; CRIU's chunks are bounded by its pipes (256 to 1024 pages).
const RECORD_PAGES_MAX: u64 = 1 << 16;
/// Pages handed on at once.
const CHUNK_PAGES: u64 = 256;

/// Why CRIU's pages could not be received.
#[derive(Debug, thiserror::Error)]
pub enum PageServerError {
    /// No listener could be made.
    #[error("cannot listen on loopback for CRIU's pages")]
    Listen(#[source] std::io::Error),
    /// The connection failed.
    #[error("the connection from CRIU broke")]
    Io(#[source] std::io::Error),
    /// Somebody else connected.
    #[error("a process of user {uid} connected to the page server, only root's CRIU may")]
    Stranger {
        /// Owner of the other socket.
        uid: u32,
    },
    /// The protocol is not what we know.
    #[error("CRIU sent something unknown: {what} (command {command:#x})")]
    Unknown {
        /// What is wrong.
        what: &'static str,
        /// The record's command word.
        command: u32,
    },
    /// Nobody takes the pages any more.
    #[error("the migration stopped while CRIU was sending pages")]
    Stopped,
}

/// What CRIU sends, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageEvent {
    /// An object begins; it may turn out to have no pages.
    Object(ObjectId),
    /// Pages of the object that began last.
    Pages(PageRecord),
}

/// Pages as CRIU sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRecord {
    /// Whose pages.
    pub object: ObjectId,
    /// First page.
    pub first: PageIndex,
    /// CRIU's PE_* flags of the record.
    pub flags: u32,
    /// Content, a multiple of the page size.
    pub data: Bytes,
}

/// The listener of one dump.
#[derive(Debug)]
pub struct PageServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl PageServer {
    /// Listens on a free loopback port.
    ///
    /// # Errors
    /// [`PageServerError::Listen`].
    pub async fn bind() -> Result<Self, PageServerError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(PageServerError::Listen)?;
        let address = listener.local_addr().map_err(PageServerError::Listen)?;
        Ok(Self { listener, address })
    }

    /// Where CRIU is to connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts the one connection and receives until CRIU closes.
    ///
    /// # Errors
    /// See [`PageServerError`].
    pub async fn serve(self, sink: mpsc::Sender<PageEvent>) -> Result<(), PageServerError> {
        let (stream, peer) = self.listener.accept().await.map_err(PageServerError::Io)?;
        drop(self.listener);
        check_owner(peer, self.address)?;
        stream.set_nodelay(true).map_err(PageServerError::Io)?;
        receive_pages(Prompt(stream), sink).await
    }
}

/// A connection that acknowledges at once. CRIU sends small records and waits (Nagle's algorithm, or a corked socket): with an
/// acknowledgement that is put off for 40 ms (tcp(7), TCP_QUICKACK) each of them would stand still so long, and the container with
/// it. The kernel forgets the wish now and then, so it is repeated with every read.
struct Prompt(TcpStream);

impl AsyncRead for Prompt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(context, buffer);
        self.0.set_quickack(true)?;
        read
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// The kernel's table of TCP sockets names the owner of each (proc(5), /proc/net/tcp).
fn check_owner(peer: SocketAddr, ours: SocketAddr) -> Result<(), PageServerError> {
    let table = procfs::net::tcp().map_err(|e| PageServerError::Io(std::io::Error::other(e)))?;
    let entry = table.into_iter().find(|e| e.local_address == peer && e.remote_address == ours);
    match entry.map(|e| e.uid) {
        Some(0) => Ok(()),
        Some(uid) => Err(PageServerError::Stranger { uid }),
        None => Err(PageServerError::Stranger { uid: u32::MAX }),
    }
}

struct Record {
    command: u32,
    pages: u64,
    address: u64,
    object: u64,
}

async fn read_record<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Record, PageServerError> {
    let mut bytes = [0u8; 32];
    stream.read_exact(&mut bytes).await.map_err(PageServerError::Io)?;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let command = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    Ok(Record { command, pages: word(8), address: word(16), object: word(24) })
}

/// Speaks the protocol over any byte stream.
///
/// # Errors
/// See [`PageServerError`].
pub async fn receive_pages<S>(mut stream: S, sink: mpsc::Sender<PageEvent>) -> Result<(), PageServerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let record = read_record(&mut stream).await?;
        let (operation, flags) = (record.command & 0xffff, record.command >> 16);
        let unknown = |what| PageServerError::Unknown { what, command: record.command };
        let object_type = u32::try_from(record.object & 0xff).unwrap_or(0);
        match operation {
            OPEN | OPEN2 => {
                let object = ObjectId::from_wire(object_type, record.object >> 8)
                    .ok_or_else(|| unknown("an unknown kind of object"))?;
                sink.send(PageEvent::Object(object)).await.map_err(|_| PageServerError::Stopped)?;
                if operation == OPEN2 {
                    stream.write_all(&[0]).await.map_err(PageServerError::Io)?;
                }
            }
            PARENT => stream.write_all(&0i32.to_le_bytes()).await.map_err(PageServerError::Io)?,
            ADD | ADD_F => {
                let flags = if operation == ADD { PE_PRESENT } else { flags };
                let object = ObjectId::from_wire(object_type, record.object >> 8)
                    .ok_or_else(|| unknown("pages of an unknown kind of object"))?;
                if flags & PE_PRESENT == 0 {
                    return Err(unknown("a record without pages"));
                }
                if record.pages == 0
                    || record.pages > RECORD_PAGES_MAX
                    || record.address % PAGE_SIZE as u64 != 0
                {
                    return Err(unknown("an impossible range"));
                }
                take_pages(&mut stream, &sink, object, flags, &record).await?;
            }
            CLOSE | FORCE_CLOSE => {
                stream.write_all(&0i32.to_le_bytes()).await.map_err(PageServerError::Io)?;
                return Ok(());
            }
            _ => return Err(unknown("a command that a dump does not send")),
        }
    }
}

async fn take_pages<S: AsyncRead + Unpin>(
    stream: &mut S,
    sink: &mpsc::Sender<PageEvent>,
    object: ObjectId,
    flags: u32,
    record: &Record,
) -> Result<(), PageServerError> {
    let mut first = PageIndex::of_address(record.address);
    let mut left = record.pages;
    while left > 0 {
        let count = left.min(CHUNK_PAGES);
        let length = usize::try_from(count).expect("a chunk is small") * PAGE_SIZE;
        let mut data = vec![0u8; length];
        stream.read_exact(&mut data).await.map_err(PageServerError::Io)?;
        let chunk = PageRecord { object, first, flags, data: data.into() };
        sink.send(PageEvent::Pages(chunk)).await.map_err(|_| PageServerError::Stopped)?;
        first = PageIndex(first.0 + count);
        left -= count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    fn record(command: u32, pages: u64, address: u64, object: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(command.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(pages.to_le_bytes());
        bytes.extend(address.to_le_bytes());
        bytes.extend(object.to_le_bytes());
        bytes
    }

    #[tokio::test]
    async fn a_dump_is_received_as_criu_sends_it() {
        let server = PageServer::bind().await.unwrap();
        let mut criu = TcpStream::connect(server.address()).await.unwrap();
        let (sink, mut pages) = mpsc::channel(8);
        let served = tokio::spawn(server.serve(sink));
        criu.write_all(&record(OPEN2, 0, 0, (1 << 8) | 1)).await.unwrap();
        assert_eq!(criu.read_u8().await.unwrap(), 0);
        criu.write_all(&record(ADD_F | (6 << 16), 300, 0x7000, (1 << 8) | 1)).await.unwrap();
        criu.write_all(&vec![7u8; 300 * PAGE_SIZE]).await.unwrap();
        assert_eq!(pages.recv().await, Some(PageEvent::Object(ObjectId::Task(1))));
        let Some(PageEvent::Pages(first)) = pages.recv().await else { panic!("no pages") };
        assert_eq!((first.object, first.first, first.flags), (ObjectId::Task(1), PageIndex(7), 6));
        assert_eq!(first.data.len(), 256 * PAGE_SIZE);
        let Some(PageEvent::Pages(second)) = pages.recv().await else { panic!("no pages") };
        assert_eq!((second.first, second.data.len()), (PageIndex(7 + 256), 44 * PAGE_SIZE));
        criu.write_all(&record(CLOSE, 0, 0, 0)).await.unwrap();
        assert_eq!(criu.read_i32_le().await.unwrap(), 0);
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nonsense_is_refused_before_anything_is_allocated() {
        for bytes in [
            record(0x77, 0, 0, 0),
            record(ADD_F | (4 << 16), u64::MAX, 0, 257),
            record(ADD_F | (4 << 16), 1, 1, 257),
            record(ADD_F | (1 << 16), 1, 0, 257),
            record(ADD_F | (4 << 16), 1, 0, 99),
        ] {
            let (mut a, b) = tokio::io::duplex(4096);
            let (sink, _pages) = mpsc::channel(1);
            a.write_all(&bytes).await.unwrap();
            assert!(matches!(receive_pages(b, sink).await, Err(PageServerError::Unknown { .. })));
        }
    }
}
