//! Length-prefixed protobuf messages: `u32` little-endian length, then the message. The length is checked before anything is
//! allocated.

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::model::limits::MESSAGE_MAX;

/// A message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended between two messages.
    #[error("the peer closed the stream")]
    Closed,
    /// The stream failed or ended inside a message.
    #[error("the stream broke")]
    Io(#[source] std::io::Error),
    /// The peer announced more than the bound.
    #[error("a message of {length} bytes was announced, at most {max} are allowed")]
    TooLong {
        /// What was announced.
        length: usize,
        /// The bound.
        max: usize,
    },
    /// The bytes are not the message that belongs here.
    #[error("a message could not be decoded")]
    Decode(#[source] prost::DecodeError),
    /// The right kind of bytes, but not what may come now.
    #[error("the peer broke the protocol: {0}")]
    Unexpected(&'static str),
}

/// Writes one message. The caller flushes.
///
/// # Errors
/// [`FrameError::TooLong`] for a message over [`MESSAGE_MAX`]; [`FrameError::Io`].
pub async fn write_message<W, M>(writer: &mut W, message: &M) -> Result<u64, FrameError>
where
    W: AsyncWrite + Unpin,
    M: Message,
{
    let length = message.encoded_len();
    if length > MESSAGE_MAX {
        return Err(FrameError::TooLong { length, max: MESSAGE_MAX });
    }
    let mut bytes = Vec::with_capacity(length + 4);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    message.encode(&mut bytes).expect("a vector grows");
    writer.write_all(&bytes).await.map_err(FrameError::Io)?;
    Ok(bytes.len() as u64)
}

/// Reads one message.
///
/// # Errors
/// [`FrameError::Closed`] when the stream ends before its first byte; the others as they say.
pub async fn read_message<R, M>(reader: &mut R) -> Result<M, FrameError>
where
    R: AsyncRead + Unpin,
    M: Message + Default,
{
    let mut prefix = [0u8; 4];
    let mut filled = 0;
    while filled < 4 {
        match reader.read(&mut prefix[filled..]).await.map_err(FrameError::Io)? {
            0 if filled == 0 => return Err(FrameError::Closed),
            0 => return Err(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into())),
            n => filled += n,
        }
    }
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MESSAGE_MAX {
        return Err(FrameError::TooLong { length, max: MESSAGE_MAX });
    }
    let mut bytes = vec![0u8; length];
    reader.read_exact(&mut bytes).await.map_err(FrameError::Io)?;
    M::decode(&bytes[..]).map_err(FrameError::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::{Commit, ControlFrame, control_frame::Body};

    #[tokio::test]
    async fn a_message_comes_back_and_the_end_is_seen() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let sent = ControlFrame { body: Some(Body::Commit(Commit { epoch: 7 })) };
        write_message(&mut a, &sent).await.unwrap();
        drop(a);
        let got: ControlFrame = read_message(&mut b).await.unwrap();
        assert_eq!(got, sent);
        assert!(matches!(read_message::<_, ControlFrame>(&mut b).await, Err(FrameError::Closed)));
    }

    #[tokio::test]
    async fn a_lying_length_allocates_nothing() {
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        assert!(matches!(read_message::<_, ControlFrame>(&mut b).await, Err(FrameError::TooLong { .. })));
    }
}
