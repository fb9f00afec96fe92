//! Just enough of an HTTP client.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// Status code and body.
///
/// # Errors
/// If nobody answers, or not in HTTP.
pub fn get(port: u16, path: &str) -> io::Result<(u16, String)> {
    let (head, body) = ask(port, "GET", path, "")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = String::from_utf8(body).map_err(io::Error::other)?;
    Ok((status.ok_or_else(|| io::Error::other("no status"))?, body))
}

/// Head and body of the answer to any method; `headers` are lines that end with CR LF.
///
/// # Errors
/// If nobody answers, or not in HTTP.
pub fn ask(port: u16, method: &str, path: &str, headers: &str) -> io::Result<(String, Vec<u8>)> {
    const END: &[u8] = b"\r\n\r\n";
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(END.len()).position(|window| window == END);
    let end = end.ok_or_else(|| io::Error::other("no end of the header"))?;
    let body = answer.split_off(end + END.len());
    answer.truncate(end);
    Ok((String::from_utf8(answer).map_err(io::Error::other)?, body))
}
