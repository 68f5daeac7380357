//! The transfer: one request after another until the archive is complete, each going on where the last one ended.

use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use super::part::{Part, Version};
use super::{BUFFER, Expected, FetchError, FetchProgress};

/// Attempts in a row that bring nothing new.
const ATTEMPTS: u32 = 5;
/// The pause before the second attempt; it doubles with every further one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// An attempt that brings the archive this many bytes further than ever before starts the count anew.
const NEW_GROUND: u64 = 1 << 20;
/// How long a server may take to be reached, or to say nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// What became of one request.
enum Step {
    Complete,
    /// It failed in a way that may pass; the error is for the case that it does not.
    Again(Failure),
}

enum Failure {
    Unreachable(String),
    Cut(String),
    Status(StatusCode),
    Response(String),
}

/// Brings `part` to completion.
pub(super) fn download(
    url: &str,
    expected: &Expected,
    dest: &Path,
    part: &mut Part,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<(), FetchError> {
    let limit = expected.max_archive_len();
    let agent = agent(url)?;
    let mut reached = false;
    let mut furthest = part.len();
    let mut failures = 0;
    while !part.is_complete() {
        let failure = match request(&agent, url, limit, part, progress)? {
            Step::Complete => break,
            Step::Again(failure) => failure,
        };
        reached |= !matches!(failure, Failure::Unreachable(_));
        if part.len() >= furthest + NEW_GROUND {
            furthest = part.len();
            failures = 0;
        }
        failures += 1;
        if failures == ATTEMPTS || !reached {
            let part = Some(&*part).filter(|part| reached && part.len() > 0);
            return Err(failure.into_error(url, expected, dest, part));
        }
        let wait = FIRST_PAUSE * 2u32.pow(failures - 1);
        progress(FetchProgress::Retrying {
            attempt: failures,
            wait,
            reason: failure.reason(),
        });
        thread::sleep(wait);
    }
    Ok(())
}

impl Failure {
    fn reason(&self) -> String {
        match self {
            Self::Unreachable(reason) | Self::Cut(reason) | Self::Response(reason) => {
                reason.clone()
            }
            Self::Status(status) => format!("HTTP status {status}"),
        }
    }

    /// The error to give up with; `part` is what was received, if anything was.
    fn into_error(
        self,
        url: &str,
        expected: &Expected,
        dest: &Path,
        part: Option<&Part>,
    ) -> FetchError {
        match self {
            Self::Status(status) => FetchError::Status {
                url: url.into(),
                status: status.as_u16(),
            },
            Self::Response(reason) => FetchError::Response {
                url: url.into(),
                reason,
            },
            Self::Unreachable(reason) | Self::Cut(reason) => match part {
                None => FetchError::unreachable(url, reason, expected, dest),
                Some(part) => FetchError::Interrupted {
                    url: url.into(),
                    reason,
                    received: part.len(),
                    total: part.total(),
                    part: part.path().into(),
                },
            },
        }
    }
}

fn agent(url: &str) -> Result<Agent, FetchError> {
    let uri: Uri = url
        .parse()
        .map_err(|error: ureq::http::uri::InvalidUri| FetchError::Url {
            url: url.into(),
            reason: error.to_string(),
        })?;
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        // A compressed transfer would count other bytes than the ranges do.
        .accept_encoding("identity")
        .user_agent(concat!("sharnn-data/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(SILENCE))
        .timeout_connect(Some(SILENCE))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE));
    let host = uri.host().unwrap_or_default();
    let on_this_machine = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse()
            .is_ok_and(|ip: IpAddr| ip.is_loopback());
    if on_this_machine {
        // A proxy would look for it on its own machine.
        config = config.proxy(None);
    }
    Ok(config.build().into())
}

/// Asks for what is missing and takes in what comes.
fn request(
    agent: &Agent,
    url: &str,
    limit: u64,
    part: &mut Part,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<Step, FetchError> {
    let mut request = agent.get(url);
    if let Some(version) = part.version() {
        request = request.header(header::RANGE, format!("bytes={}-", part.len()));
        if let Some(validator) = &version.validator {
            request = request.header(header::IF_RANGE, validator);
        }
    }
    let response = match request.call() {
        Ok(response) => response,
        Err(error) => return call_failed(url, error),
    };
    // How many bytes the body has, where that is known.
    let body_len = match response.status() {
        StatusCode::OK => {
            let total = content_length(response.headers());
            check_limit(url, total, limit, part)?;
            part.begin(Version {
                url: url.into(),
                validator: validator(response.headers()),
                total,
            })?;
            total
        }
        StatusCode::PARTIAL_CONTENT => match check_range(response.headers(), part) {
            Ok((len, total)) => {
                part.learn_total(total)?;
                Some(len)
            }
            Err(reason) => {
                part.clear()?;
                return Ok(Step::Again(Failure::Response(reason)));
            }
        },
        // The archive has become shorter than what is here.
        StatusCode::RANGE_NOT_SATISFIABLE => {
            part.clear()?;
            return Ok(Step::Again(Failure::Status(response.status())));
        }
        status
            if status.is_server_error()
                || status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::REQUEST_TIMEOUT =>
        {
            return Ok(Step::Again(Failure::Status(status)));
        }
        status => {
            return Err(FetchError::Status {
                url: url.into(),
                status: status.as_u16(),
            });
        }
    };
    receive(url, response, body_len, limit, part, progress)
}

/// Takes in a body, which is `body_len` bytes long or as long as it lasts.
fn receive(
    url: &str,
    response: Response<Body>,
    body_len: Option<u64>,
    limit: u64,
    part: &mut Part,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<Step, FetchError> {
    let mut reader = response.into_body().into_reader();
    let mut buffer = vec![0; BUFFER];
    let mut received = 0;
    loop {
        progress(FetchProgress::Downloading {
            bytes: part.len(),
            total: part.total(),
        });
        let n = match reader.read(&mut buffer) {
            Ok(n) => n,
            Err(error) => return Ok(Step::Again(Failure::Cut(error.to_string()))),
        };
        if n == 0 {
            break;
        }
        received += n as u64;
        if body_len.is_some_and(|len| received > len) {
            part.clear()?;
            let reason = "more bytes than announced".to_owned();
            return Ok(Step::Again(Failure::Response(reason)));
        }
        check_limit(url, Some(part.len() + n as u64), limit, part)?;
        part.append(&buffer[..n])?;
    }
    let whole = match part.total() {
        Some(total) => part.len() == total,
        None => body_len.is_none_or(|len| received == len),
    };
    Ok(if whole {
        Step::Complete
    } else {
        Step::Again(Failure::Cut("the server stopped early".into()))
    })
}

fn call_failed(url: &str, error: ureq::Error) -> Result<Step, FetchError> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    use ureq::{Error, Timeout};
    let reason = error.to_string();
    let failure = match error {
        Error::BadUri(_) | Error::Http(_) => {
            return Err(FetchError::Url {
                url: url.into(),
                reason,
            });
        }
        Error::Io(error)
            if matches!(
                error.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
            ) =>
        {
            Failure::Cut(reason)
        }
        Error::Timeout(Timeout::Resolve | Timeout::Connect) => Failure::Unreachable(reason),
        Error::Timeout(_) => Failure::Cut(reason),
        Error::Protocol(_) => Failure::Response(reason),
        _ => Failure::Unreachable(reason),
    };
    Ok(Step::Again(failure))
}

/// Refuses an archive of `len` bytes if that is more than it can have.
fn check_limit(url: &str, len: Option<u64>, limit: u64, part: &mut Part) -> Result<(), FetchError> {
    if len.is_none_or(|len| len <= limit) {
        return Ok(());
    }
    part.clear()?;
    Err(FetchError::TooLarge {
        url: url.into(),
        limit,
    })
}

/// Checks that a partial answer continues what is here. Returns how many bytes it brings, and how many the whole
/// archive has, where it tells.
fn check_range(headers: &HeaderMap, part: &Part) -> Result<(u64, Option<u64>), String> {
    let Some(version) = part.version() else {
        return Err("a part, though the whole was asked for".into());
    };
    let field = text(headers, header::CONTENT_RANGE).unwrap_or_default();
    let wrong = || format!("Content-Range `{field}`, asked from byte {}", part.len());
    let (first, last, total) = parse_range(field).ok_or_else(wrong)?;
    if first != part.len() || last < first || total.is_some_and(|total| last >= total) {
        return Err(wrong());
    }
    // A part of another version, from a server that does not know `If-Range`.
    if let (Some(now), Some(then)) = (total, version.total)
        && now != then
    {
        return Err(format!("the archive had {then} bytes and now has {now}"));
    }
    if let (Some(now), Some(then)) = (validator(headers), &version.validator)
        && now != *then
    {
        return Err("the archive has changed".into());
    }
    let len = last - first + 1;
    match content_length(headers) {
        Some(announced) if announced != len => Err(wrong()),
        _ => Ok((len, total)),
    }
}

/// `bytes FIRST-LAST/TOTAL`, where the total may be `*`.
fn parse_range(field: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = field.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

/// What identifies this version in `If-Range`: a strong entity tag, or else the date of the last change.
fn validator(headers: &HeaderMap) -> Option<String> {
    text(headers, header::ETAG)
        .filter(|tag| tag.starts_with('"'))
        .or_else(|| text(headers, header::LAST_MODIFIED))
        .map(str::to_owned)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_LENGTH)?.parse().ok()
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
