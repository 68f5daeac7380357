//! An HTTP server of a few lines on this machine, which answers as a test tells it to and keeps what it was asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// The header fields of a request, names in lower case.
#[derive(Clone, Debug, Default)]
pub struct Request {
    fields: Vec<(String, String)>,
}

impl Request {
    pub fn field(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(field, _)| field == name)?;
        Some(value)
    }

    /// The first byte that was asked for, if a range was.
    pub fn range_start(&self) -> Option<usize> {
        let range = self.field("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// An answer: its head is sent as it stands, and the connection is closed after the body.
pub struct Reply {
    status: u16,
    fields: Vec<(&'static str, String)>,
    body: Vec<u8>,
    endless: bool,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            fields: Vec::new(),
            body: Vec::new(),
            endless: false,
        }
    }

    /// Nothing at all: the connection is closed.
    pub fn silence() -> Self {
        Self::status(0)
    }

    /// 200 with all of `body`.
    pub fn whole(body: &[u8]) -> Self {
        Self::status(200)
            .with("Content-Length", body.len())
            .body(body)
    }

    /// 206 with `body` from byte `start` on.
    pub fn rest(body: &[u8], start: usize) -> Self {
        let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
        Self::status(206)
            .with("Content-Range", range)
            .with("Content-Length", body.len() - start)
            .body(&body[start..])
    }

    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.fields.push((name, value.to_string()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(field, _)| *field != name);
        self
    }

    pub fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    /// Closes the connection after the first `len` bytes of the body.
    pub fn cut_after(mut self, len: usize) -> Self {
        self.body.truncate(len);
        self
    }

    /// Repeats the body until the other side hangs up.
    pub fn endless(mut self) -> Self {
        self.endless = true;
        self
    }

    fn send(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        if self.status == 0 {
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(&self.body)?;
        if !self.endless {
            return Ok(());
        }
        loop {
            stream.write_all(&self.body)?;
        }
    }
}

/// A running server. It stops when dropped.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers request `i` (from 0) with `answer(i, request)`.
    pub fn start(answer: impl Fn(usize, &Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (requests, stop) = (requests.clone(), stop.clone());
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let stream = stream.unwrap();
                    let Some(request) = read_request(&stream) else {
                        continue;
                    };
                    let i = {
                        let mut requests: std::sync::MutexGuard<'_, Vec<Request>> =
                            requests.lock().unwrap();
                        requests.push(request.clone());
                        requests.len() - 1
                    };
                    // The client may hang up first, which is its right.
                    let _ = answer(i, &request).send(&stream);
                }
            }
        });
        Self {
            address,
            requests,
            stop,
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/dc/archive.zip", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    lines.next()?.ok()?;
    let mut fields = Vec::new();
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Some(Request { fields })
}
