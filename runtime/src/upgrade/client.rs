//! The other side of the service: what `segue upgrade` does, and tests.

use super::protocol::{
    Answer, Command, Hello, MAX_ANSWER, MAX_DATA, MAX_DATA_REQUEST, Occasion, Opening, Refused,
    Request, Signed, Status,
};
use super::wire::{self, WireError};
use crate::kernel::image::{Digest, SigningKey};
use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Parts of a bundle that are sent before the first is acknowledged.
const AHEAD: u64 = 16;

/// Why something did not come about.
#[derive(Debug)]
pub enum ClientError {
    /// The connection is gone, or was never there.
    Connection(WireError),
    /// The other side is no upgrade service, or a newer one.
    Garbled,
    /// The domain says no; it has closed the connection.
    Refused(Refused),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => write!(f, "{error}"),
            Self::Garbled => f.write_str("what answers there is no upgrade service that I know"),
            Self::Refused(refused) => write!(f, "{refused}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        Self::Connection(error)
    }
}

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// It is there.
    Complete,
    /// Its image runs already.
    Runs,
}

/// A connection to an upgrade service.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    hello: Hello,
    room: Vec<u8>,
    limit: Duration,
}

impl Client {
    /// Connects. No answer may take longer than `limit`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(to: SocketAddr, limit: Duration) -> Result<Self, ClientError> {
        let deadline = Instant::now() + limit;
        let stream = TcpStream::connect_timeout(&to, limit).map_err(WireError::Io)?;
        stream.set_nodelay(true).map_err(WireError::Io)?;
        wire::write(&stream, &Opening::OURS.encode(), deadline)?;
        let mut room = vec![0; MAX_ANSWER];
        let frame = wire::read_frame(&stream, &mut room, MAX_ANSWER, deadline);
        let frame = frame.map_err(not_ours)?;
        let hello = match Answer::decode(frame).map_err(|_| ClientError::Garbled)? {
            Answer::Hello(hello) => hello,
            Answer::Refused(refused) => return Err(ClientError::Refused(refused)),
            _ => return Err(ClientError::Garbled),
        };
        Ok(Self {
            stream,
            hello,
            room,
            limit,
        })
    }

    /// What the domain said of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn answer(&mut self, limit: Duration) -> Result<Answer, ClientError> {
        let deadline = Instant::now() + limit;
        let frame = wire::read_frame(&self.stream, &mut self.room, MAX_ANSWER, deadline);
        let answer = Answer::decode(frame.map_err(not_ours)?).map_err(|_| ClientError::Garbled)?;
        match answer {
            Answer::Refused(refused) => Err(ClientError::Refused(refused)),
            Answer::Receive { nonce, .. }
            | Answer::Complete { nonce }
            | Answer::Confirmed { nonce, .. } => {
                self.hello.nonce = nonce;
                Ok(answer)
            }
            Answer::Hello(hello) => {
                self.hello = hello.clone();
                Ok(Answer::Hello(hello))
            }
            answer => Ok(answer),
        }
    }

    /// The next answer, if it begins to come within `limit`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn poll(&mut self, limit: Duration) -> Result<Option<Answer>, ClientError> {
        let limit = limit.max(Duration::from_millis(1));
        let set = self.stream.set_read_timeout(Some(limit));
        set.map_err(WireError::Io)?;
        match self.stream.peek(&mut [0]) {
            Ok(0) => Err(WireError::Closed.into()),
            Ok(_) => self.answer(self.limit).map(Some),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(None),
            Err(e) => Err(WireError::Io(e).into()),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn send(&mut self, request: &Request<'_>) -> Result<(), ClientError> {
        let mut room = [0; MAX_DATA_REQUEST + 4];
        let frame = request.encode(&mut room).ok_or(ClientError::Garbled)?;
        let sent = wire::write(&self.stream, frame, Instant::now() + self.limit);
        Ok(sent?)
    }

    /// How the domain is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.send(&Request::Status)?;
        match self.answer(self.limit)? {
            Answer::Status(status) => Ok(*status),
            _ => Err(ClientError::Garbled),
        }
    }

    /// Signs a command and has it done; gives the first answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn command(&mut self, command: Command, key: &SigningKey) -> Result<Answer, ClientError> {
        let occasion = Occasion {
            domain: self.hello.domain,
            generation: self.hello.generation,
            nonce: self.hello.nonce,
        };
        let signed = Signed::new(command, &occasion, key);
        self.send(&Request::Signed(Box::new(signed)))?;
        self.answer(self.limit)
    }

    /// Uploads a bundle, or goes on with that. `progress` is told how many bytes are there.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn upload(
        &mut self,
        bundle: &[u8],
        downgrade: Option<&[u8]>,
        key: &SigningKey,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Uploaded, ClientError> {
        let command = Command::Upload {
            bundle: Digest::of(&[bundle]),
            len: bundle.len() as u64,
            downgrade: match downgrade {
                Some(bytes) => Some(bytes.try_into().map_err(|_| ClientError::Garbled)?),
                None => None,
            },
        };
        let mut there = match self.command(command, key)? {
            Answer::Receive { offset, .. } => offset,
            Answer::Complete { .. } => return Ok(Uploaded::Complete),
            Answer::Runs => return Ok(Uploaded::Runs),
            _ => return Err(ClientError::Garbled),
        };
        let mut sent = there;
        loop {
            progress(there);
            let rest = usize::try_from(sent).ok().and_then(|at| bundle.get(at..));
            let rest = rest.ok_or(ClientError::Garbled)?;
            if !rest.is_empty() && sent.saturating_sub(there) < AHEAD * MAX_DATA as u64 {
                let bytes = rest.get(..MAX_DATA).unwrap_or(rest);
                let offset = sent;
                if self.send(&Request::Data { offset, bytes }).is_ok() {
                    sent = sent.saturating_add(bytes.len() as u64);
                    continue;
                }
                // It was closed; what was said before that is the reason.
            }
            match self.answer(self.limit)? {
                Answer::Received { offset } if (there..=sent).contains(&offset) => there = offset,
                Answer::Complete { .. } => {
                    progress(bundle.len() as u64);
                    return Ok(Uploaded::Complete);
                }
                Answer::Runs => return Ok(Uploaded::Runs),
                _ => return Err(ClientError::Garbled),
            }
        }
    }
}

/// What answers with lengths that no answer has speaks something else.
fn not_ours(error: WireError) -> ClientError {
    match error {
        WireError::Length { .. } => ClientError::Garbled,
        error => ClientError::Connection(error),
    }
}
