//! CRIU's image files (everything but pages), sent at the hold.

use std::path::Path;

use tokio::io::AsyncReadExt;

use super::super::MigrationError;
use super::Source;
use super::negotiate::open;
use crate::model::limits::{IMAGE_FILE_BYTES_MAX, IMAGE_FILES_MAX};
use crate::protocol::frame::write_message;
use crate::rpc::v1::{ImageData, ImageFile, stream_hello::Role};

/// Bytes of one ImageData message.
const CHUNK: usize = 512 << 10;

/// What was sent.
pub(super) struct Sent {
    pub(super) files: u32,
    pub(super) bytes: u64,
}

fn names(folder: &Path) -> Result<Vec<String>, MigrationError> {
    let entries = std::fs::read_dir(folder).map_err(MigrationError::io("list", folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(MigrationError::io("list", folder))?;
        let name = entry.file_name().into_string().map_err(|name| MigrationError::Io {
            doing: "read the name of an image in",
            path: folder.join(name),
            source: std::io::ErrorKind::InvalidData.into(),
        })?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

impl Source {
    /// Sends every file of the folder over one stream and waits until the destination has them all.
    pub(super) async fn send_images(&self, folder: &Path) -> Result<Sent, MigrationError> {
        let names = names(folder)?;
        if names.len() > IMAGE_FILES_MAX as usize {
            return Err(MigrationError::Protocol {
                host: self.host.id.to_string(),
                what: format!(
                    "CRIU wrote {} image files, at most {IMAGE_FILES_MAX} are carried",
                    names.len()
                ),
            });
        }
        let mut stream = open(&self.link, Role::Images, &self.record.migration).await?;
        let mut sent = Sent { files: 0, bytes: 0 };
        for name in names {
            let path = folder.join(&name);
            let mut content = Vec::new();
            let opened = tokio::fs::File::open(&path).await.map_err(MigrationError::io("open", &path))?;
            let limited = opened.take(IMAGE_FILE_BYTES_MAX).read_to_end(&mut content).await;
            limited.map_err(MigrationError::io("read", &path))?;
            let digest = blake3::hash(&content);
            let header =
                ImageFile { name, size: content.len() as u64, digest: digest.as_bytes().to_vec().into() };
            sent.bytes += write_message(&mut stream, &header).await?;
            for chunk in content.chunks(CHUNK) {
                let data = ImageData { data: chunk.to_vec().into() };
                sent.bytes += write_message(&mut stream, &data).await?;
            }
            sent.files += 1;
        }
        stream.finish().await?;
        Ok(sent)
    }
}
