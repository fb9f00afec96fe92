//! What the demo's containers do: a shop's web server, its database, a client, and one that is kept out.
//!
//! All loads are paced: together a few hundred packets and some megabits a second.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

const WEB_PORT: u16 = 8080;
const DATABASE_PORT: u16 = 5432;
const METRICS_PORT: u16 = 8125;

const PAGE_BYTES: usize = 24 * 1024;
const ROW_BYTES: usize = 900;

/// Between two requests of the client; every [`BATCH_EVERY`]th is for a large download.
const CLIENT_PAUSE: Duration = Duration::from_millis(40);
const BATCH_EVERY: u32 = 50;
const BATCH_BYTES: usize = 2 * 1024 * 1024;
const OUTSIDER_PAUSE: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub enum Role {
    /// Serves pages, each with a query to the database.
    Web {
        database: Ipv4Addr,
    },
    Database,
    /// Fetches pages and sends metrics by UDP.
    Client {
        web: Ipv4Addr,
        metrics: Ipv4Addr,
    },
    /// Tries to reach a database on a network that it is not on.
    Outsider {
        database: Ipv4Addr,
    },
}

/// Plays a role until the process ends. What goes wrong in the play is part of it.
pub fn run(role: &Role, own: Ipv4Addr) {
    match role {
        Role::Web { database } => {
            let database = at(*database, DATABASE_PORT);
            serve(at(own, WEB_PORT), |stream| page(stream, database));
        }
        Role::Database => {
            // Takes the metrics that the client sends, or they would be refused by ICMP.
            let metrics = UdpSocket::bind((own, METRICS_PORT));
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while metrics.as_ref().is_ok_and(|socket| socket.recv(&mut buffer).is_ok()) {}
            });
            serve(at(own, DATABASE_PORT), rows);
        }
        Role::Client { web, metrics } => client(at(*web, WEB_PORT), at(*metrics, METRICS_PORT)),
        Role::Outsider { database } => loop {
            let _ = TcpStream::connect_timeout(&at(*database, DATABASE_PORT), OUTSIDER_PAUSE);
            thread::sleep(OUTSIDER_PAUSE);
        },
    }
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(address), port)
}

fn serve(address: SocketAddr, mut answer: impl FnMut(TcpStream) -> io::Result<()>) {
    let Ok(listener) = TcpListener::bind(address) else { return };
    for stream in listener.incoming().flatten() {
        let _ = stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| answer(stream));
    }
}

/// A request is a line with the number of bytes wanted.
fn page(mut stream: TcpStream, database: SocketAddr) -> io::Result<()> {
    let wanted = read_number(&mut stream)?;
    let mut query = TcpStream::connect_timeout(&database, TIMEOUT)?;
    query.write_all(b"1\n")?;
    query.read_to_end(&mut Vec::new())?;
    stream.write_all(&vec![b'p'; wanted.min(BATCH_BYTES)])
}

fn rows(mut stream: TcpStream) -> io::Result<()> {
    let rows = read_number(&mut stream)?;
    stream.write_all(&vec![b'r'; ROW_BYTES * rows.min(8)])
}

fn read_number(stream: &mut TcpStream) -> io::Result<usize> {
    let mut request = [0; 64];
    let length = stream.read(&mut request)?;
    let text = std::str::from_utf8(&request[..length]).map_err(io::Error::other)?;
    text.trim().parse().map_err(io::Error::other)
}

fn client(web: SocketAddr, metrics: SocketAddr) {
    let statistics = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    for request in 1u32.. {
        let wanted = if request.is_multiple_of(BATCH_EVERY) { BATCH_BYTES } else { PAGE_BYTES };
        let _ = fetch(web, wanted);
        if let Ok(socket) = &statistics {
            let _ = socket.send_to(b"shop.pages:1|c", metrics);
        }
        thread::sleep(CLIENT_PAUSE);
    }
}

fn fetch(web: SocketAddr, wanted: usize) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&web, TIMEOUT)?;
    stream.write_all(format!("{wanted}\n").as_bytes())?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}
