//! Sends back what it is sent, over TCP and UDP; over TCP it throws away or sends characters, too.
//!
//! `echo [ADDRESS:PORT]`: echo there, 7 in an image; discard 2 ports above, chargen 12 above, as 9
//! and 19 are.
use echo::{Echo, Serve, chargen, datagrams, discard, each};
use segue_serve::{Config, Server};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::ExitCode;
use std::sync::mpsc;
use std::{io, thread};

const LISTEN: &str = if cfg!(target_os = "hermit") {
    "[::]:7"
} else {
    "127.0.0.1:7007"
};

fn serve() -> Result<(), String> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| LISTEN.into());
    let address: SocketAddr = listen
        .parse()
        .map_err(|_| format!("'{listen}' is no ADDRESS:PORT"))?;
    let at_address = |error: io::Error| format!("{address}: {error}");
    let socket = UdpSocket::bind(address).map_err(at_address)?;
    let server = Server::new(Echo, Config::default()).map_err(|error| error.to_string())?;
    let others: [(u16, Serve); 2] = [(2, discard), (12, chargen)];
    for (above, service) in others {
        let port = address
            .port()
            .checked_add(above)
            .ok_or("a lower port is needed")?;
        let address = SocketAddr::new(address.ip(), port);
        let listener = TcpListener::bind(address).map_err(|e| format!("{address}: {e}"))?;
        thread::spawn(move || {
            if let Err(error) = each(&listener, service) {
                eprintln!("echo: {address}: {error}");
            }
        });
    }
    println!("echo: listen={address}");
    end_with_the_domain(&server)?;
    let (failed, failure) = mpsc::channel();
    let stopped = server.clone();
    let over_udp = move || {
        if let Err(error) = datagrams(&socket) {
            // Who would receive it has ended already, or will look when the server has stopped.
            let _ = failed.send(error);
            stopped.stop();
        }
    };
    // It goes on until its socket fails; else it ends with the process.
    let thread = thread::Builder::new().name("udp".into()).spawn(over_udp);
    thread.map_err(|error| error.to_string())?;
    server.listen(address).map_err(at_address)?;
    if let Ok(error) = failure.try_recv() {
        return Err(at_address(error));
    }
    Ok(())
}

/// Asked to end, it sends back what came before.
#[cfg(target_os = "hermit")]
fn end_with_the_domain(server: &Server<Echo>) -> Result<(), String> {
    let server = server.clone();
    segue::shutdown::on_request(move |_| server.drain()).map_err(|error| error.to_string())
}

#[cfg(not(target_os = "hermit"))]
fn end_with_the_domain(_: &Server<Echo>) -> Result<(), String> {
    Ok(())
}

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}
