//! Whole, checked messages in; bytes out.
//!
//! pgwire's decoders trust what a message says of itself: counts and lengths that lie make them panic, and a name without its
//! zero byte is sought in the next message. So each message is first cut out of the stream by its own length and its layout walked
//! through ([`check_layout`]); only then is it decoded.

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use pgwire::error::PgWireError;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::{GssEncRequest, SslRequest, Startup};
use pgwire::messages::{DecodeContext, Message, PgWireFrontendMessage, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::error::PgError;
use crate::server::sqlstate as code;

/// The longest message that carries text or data.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// The longest of the other messages, as in Postgres.
const MAX_SMALL_MESSAGE_BYTES: usize = 10_000;
/// When so much waits to be sent, it is sent.
pub const FULL_BYTES: usize = 64 << 10;

/// Why no message came.
#[derive(Debug)]
pub enum ReadError {
    /// The client is gone.
    Closed,
    /// The client does not keep to the protocol; it is told so, and that is the end.
    Protocol(PgError),
}

impl From<io::Error> for ReadError {
    fn from(_: io::Error) -> ReadError {
        ReadError::Closed
    }
}

/// The first message of a connection.
#[derive(Debug)]
pub enum Opening {
    Startup(Startup),
    Cancel {
        pid: i32,
        secret: i32,
    },
    /// TLS or GSS encryption is asked for.
    Encryption,
}

/// One client's connection.
pub struct Transport {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
    context: DecodeContext,
}

impl Transport {
    pub fn new(stream: TcpStream) -> Transport {
        let mut context = DecodeContext::new(ProtocolVersion::PROTOCOL3_0);
        context.awaiting_frontend_ssl = false;
        context.awaiting_frontend_startup = false;
        Transport { stream, input: BytesMut::new(), output: BytesMut::new(), context }
    }

    /// A message without a type: what a connection opens with.
    pub async fn read_opening(&mut self) -> Result<Opening, ReadError> {
        while self.input.len() < 4 {
            self.fill().await?;
        }
        let length = (&self.input[..4]).get_u32() as usize;
        if !(8..=MAX_SMALL_MESSAGE_BYTES).contains(&length) {
            return Err(violation("invalid length of startup packet"));
        }
        while self.input.len() < length {
            self.fill().await?;
        }
        let mut packet = self.input.split_to(length);
        if SslRequest::is_ssl_request_packet(&packet) || GssEncRequest::is_gss_enc_request_packet(&packet) {
            return Ok(Opening::Encryption);
        }
        if CancelRequest::is_cancel_request_packet(&packet) {
            if length != 16 {
                return Err(violation("invalid length of cancel request"));
            }
            packet.advance(8);
            return Ok(Opening::Cancel { pid: packet.get_i32(), secret: packet.get_i32() });
        }
        // Pairs of texts, each ended by a zero byte, and one zero byte more.
        let mut fields = Fields(&packet[8..]);
        while fields.0.len() > 1 {
            fields.text()?;
            fields.text()?;
        }
        if fields.0 != [0] {
            return Err(violation("invalid startup packet layout: expected terminator as last byte"));
        }
        match Startup::decode(&mut packet, &self.context) {
            Ok(Some(startup)) => Ok(Opening::Startup(startup)),
            Ok(None) | Err(_) => Err(ReadError::Protocol(
                PgError::unsupported("unsupported frontend protocol: only version 3 is spoken here").fatal(),
            )),
        }
    }

    /// The next message. Nothing is lost if the future is dropped.
    pub async fn read(&mut self) -> Result<PgWireFrontendMessage, ReadError> {
        loop {
            if let Some(length) = self.frame_length()?
                && self.input.len() > length
            {
                let mut frame = self.input.split_to(length + 1);
                check_layout(frame[0], &frame[5..])?;
                return match PgWireFrontendMessage::decode(&mut frame, &self.context) {
                    Ok(Some(message)) => Ok(message),
                    Ok(None) => Err(violation("incomplete message")),
                    Err(PgWireError::InvalidMessageType(_)) => Err(violation("invalid frontend message type")),
                    Err(other) => Err(violation(&other.to_string())),
                };
            }
            self.fill().await?;
        }
    }

    /// Returns when the client closes the connection or says that it is about to. Reads nothing; what the client sends besides hides
    /// its leaving.
    pub async fn client_leaves(&self) {
        const TERMINATE: u8 = b'X';
        let mut first = [0];
        let leaves = match self.input.first() {
            Some(first) => *first == TERMINATE,
            None => match self.stream.peek(&mut first).await {
                Ok(0) | Err(_) => true,
                Ok(_) => first[0] == TERMINATE,
            },
        };
        if !leaves {
            std::future::pending::<()>().await;
        }
    }

    /// True if a Sync message is here already, and comes next.
    pub fn sync_is_next(&self) -> bool {
        self.input.first() == Some(&b'S')
    }

    /// The length that the message at the front gives itself, without its type; checked against the limits.
    fn frame_length(&self) -> Result<Option<usize>, ReadError> {
        let Some(&kind) = self.input.first() else { return Ok(None) };
        let limit = match kind {
            b'Q' | b'P' | b'B' | b'd' => MAX_MESSAGE_BYTES,
            b'E' | b'D' | b'C' | b'S' | b'H' | b'X' | b'c' | b'f' | b'p' => MAX_SMALL_MESSAGE_BYTES,
            _ => return Err(violation(&format!("invalid frontend message type {kind}"))),
        };
        if self.input.len() < 5 {
            return Ok(None);
        }
        let length = (&self.input[1..5]).get_u32() as usize;
        if length < 4 {
            return Err(violation("invalid message length"));
        }
        if length > limit {
            let error = PgError::new(code::PROGRAM_LIMIT_EXCEEDED, "message is too long")
                .detail(format!("It has {length} bytes; the limit is {limit}."));
            return Err(ReadError::Protocol(error.fatal()));
        }
        Ok(Some(length))
    }

    async fn fill(&mut self) -> Result<(), ReadError> {
        self.input.reserve(8 << 10);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(ReadError::Closed),
            _ => Ok(()),
        }
    }

    /// Appends a message to what will be sent.
    pub fn put(&mut self, message: &impl Message) {
        let start = self.output.len();
        if let Err(error) = message.encode(&mut self.output) {
            // Only a text longer than 30 000 bytes in a short message comes here; texts are cut before.
            tracing::warn!(%error, "a message could not be encoded");
            self.output.truncate(start);
        }
    }

    /// Appends a message that `body` writes after its type and length.
    pub fn put_raw<E>(&mut self, kind: u8, body: impl FnOnce(&mut BytesMut) -> Result<(), E>) -> Result<(), E> {
        let start = self.output.len();
        self.output.put_u8(kind);
        self.output.put_u32(0);
        if let Err(error) = body(&mut self.output) {
            self.output.truncate(start);
            return Err(error);
        }
        let length = (self.output.len() - start - 1) as u32;
        self.output[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    pub fn put_byte(&mut self, byte: u8) {
        self.output.put_u8(byte);
    }

    /// True if enough waits to be sent.
    pub fn is_full(&self) -> bool {
        self.output.len() >= FULL_BYTES
    }

    /// Sends what waits. Nothing is lost or sent twice if the future is dropped.
    pub async fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            if self.stream.write_buf(&mut self.output).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.stream.flush().await
    }

    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}

fn violation(message: &str) -> ReadError {
    ReadError::Protocol(PgError::new(code::PROTOCOL_VIOLATION, message).fatal())
}

/// What is left of a message's body.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn skip(&mut self, bytes: usize) -> Result<(), ReadError> {
        self.0 = self.0.get(bytes..).ok_or_else(|| violation("insufficient data left in message"))?;
        Ok(())
    }

    fn u16(&mut self) -> Result<usize, ReadError> {
        let bytes = self.0;
        self.skip(2)?;
        Ok(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }

    /// A text ended by a zero byte.
    fn text(&mut self) -> Result<(), ReadError> {
        let end = self.0.iter().position(|b| *b == 0).ok_or_else(|| violation("invalid string in message"))?;
        let text = &self.0[..end];
        crate::server::decode::utf8(text).map_err(|error| ReadError::Protocol(error.fatal()))?;
        self.skip(end + 1)
    }
}

/// Walks through a message's body by the rules of its kind.
fn check_layout(kind: u8, body: &[u8]) -> Result<(), ReadError> {
    let mut fields = Fields(body);
    match kind {
        b'Q' | b'f' => fields.text()?,
        b'P' => {
            fields.text()?;
            fields.text()?;
            let types = fields.u16()?;
            fields.skip(types * 4)?;
        }
        b'B' => {
            fields.text()?;
            fields.text()?;
            let formats = fields.u16()?;
            fields.skip(formats * 2)?;
            for _ in 0..fields.u16()? {
                let bytes = fields.0;
                fields.skip(4)?;
                let size = i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                // -1 is NULL.
                if size > 0 {
                    fields.skip(size as usize)?;
                }
            }
            let formats = fields.u16()?;
            fields.skip(formats * 2)?;
        }
        b'E' => {
            fields.text()?;
            fields.skip(4)?;
        }
        b'D' | b'C' => {
            if !matches!(fields.0.first(), Some(b'S' | b'P')) {
                return Err(violation("invalid message subtype"));
            }
            fields.skip(1)?;
            fields.text()?;
        }
        // Data and passwords are whatever they are.
        b'd' | b'p' => return Ok(()),
        _ => {}
    }
    if fields.0.is_empty() { Ok(()) } else { Err(violation("invalid message format")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bind(parameter: &[u8]) -> Vec<u8> {
        [&b"p\0s\0\x00\x01\x00\x01\x00\x01"[..], parameter, b"\x00\x00"].concat()
    }

    #[test]
    fn bodies_are_walked_through() {
        for (kind, body, good) in [
            (b'Q', b"select 1\0".to_vec(), true),
            (b'Q', b"select 1".to_vec(), false),
            (b'Q', b"select 1\0x".to_vec(), false),
            (b'Q', b"select '\xff'\0".to_vec(), false),
            (b'P', b"\0select $1\0\x00\x01\x00\x00\x00\x17".to_vec(), true),
            (b'P', b"\0select $1\0\xff\xff\x00\x00\x00\x17".to_vec(), false),
            (b'B', bind(b"\x00\x00\x00\x02ab"), true),
            (b'B', bind(b"\xff\xff\xff\xff"), true),
            (b'B', bind(b"\x7f\xff\xff\xffab"), false),
            (b'E', b"\0\0\0\0\0".to_vec(), true),
            (b'D', b"S\0".to_vec(), true),
            (b'D', b"X\0".to_vec(), false),
            (b'S', b"".to_vec(), true),
            (b'S', b"x".to_vec(), false),
        ] {
            assert_eq!(check_layout(kind, &body).is_ok(), good, "{} {body:?}", char::from(kind));
        }
    }

    proptest! {
        #[test]
        fn no_message_that_passes_makes_the_decoder_panic(
            kind in prop::sample::select(b"QPBEDCSHXdcfp".to_vec()),
            body in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..40),
        ) {
            if check_layout(kind, &body).is_ok() {
                let mut frame = BytesMut::new();
                frame.put_u8(kind);
                frame.put_u32(body.len() as u32 + 4);
                frame.put_slice(&body);
                let mut context = DecodeContext::new(ProtocolVersion::PROTOCOL3_0);
                context.awaiting_frontend_ssl = false;
                context.awaiting_frontend_startup = false;
                let read = PgWireFrontendMessage::decode(&mut frame, &context);
                prop_assert!(matches!(read, Ok(Some(_))), "{read:?}");
                prop_assert!(frame.is_empty());
            }
        }
    }
}
