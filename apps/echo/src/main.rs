//! Sends back what it is sent, over TCP and UDP; over TCP it throws away, sums up or sends
//! characters, too.
//!
//! `echo [--listen ADDRESS:PORT] [--threads N] [--replace-every MS [--until GENERATION]]`: echo
//! there, 7 in an image; discard 2 ports above, checksum 11 above, chargen 12 above, as 9, 18 and 19
//! are. All that is under way goes on when the image is replaced.
use echo::{Chargen, Checksum, Datagrams, Discard, Echo};
use segue::handover::Incoming;
use segue_serve::app::{self, Options};
use segue_serve::{Config, Server, Service};
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

segue::trial!();

const LISTEN: &str = if cfg!(target_os = "hermit") {
    "[::]:7"
} else {
    "127.0.0.1:7007"
};

/// The name of the UDP socket when it is handed over.
const UDP: &str = "udp";

/// Connections of one of the other services at once: more would only share what there is.
const FEW: usize = 16;

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A service over TCP, before the commit.
struct Ready<S: Service> {
    name: &'static str,
    server: Server<S>,
    listener: Option<TcpListener>,
    address: SocketAddr,
}

impl<S: Service<Session: Serialize + for<'a> Deserialize<'a>>> Ready<S> {
    /// With the connections of the image before.
    fn new(
        (name, service): (&'static str, S),
        config: Config,
        above: u16,
        options: &Options,
        before: &mut Option<Incoming>,
    ) -> Result<Self, String> {
        let mut address = options.listen;
        let port = address.port().checked_add(above);
        address.set_port(port.ok_or("a lower port is needed")?);
        let server = Server::new(service, config).map_err(said)?;
        let listener = server.take(before, name).map_err(said)?;
        Ok(Self {
            name,
            server,
            listener,
            address,
        })
    }

    /// Listens, and hands that over in its turn.
    fn listen(self) -> Result<(Server<S>, Arc<TcpListener>), String> {
        let listener = app::listener(self.listener, self.address)?;
        self.server.hand_over(self.name, &listener);
        Ok((self.server, listener))
    }

    /// Runs in a thread of its own.
    fn start(self) -> Result<Server<S>, String> {
        let name = self.name;
        let (server, listener) = self.listen()?;
        let running = server.clone();
        app::in_thread(name, move || {
            if let Err(error) = running.run(&listener) {
                eprintln!("echo: {name}: {error}");
            }
        })?;
        Ok(server)
    }
}

fn serve() -> Result<(), String> {
    let listen = LISTEN.parse().map_err(said)?;
    let options = Options::read(listen, "", |_, _| Ok(false))?;
    let few = Config {
        connections: FEW,
        ..options.config
    };

    // On trial: what was handed over and can't be used is an error, and the image before goes on.
    let mut before = segue::handover();
    let socket = before.as_mut().map(|before| before.take_if_any(UDP));
    let socket = socket.transpose().map_err(said)?.flatten();
    let echo = Ready::new(("echo", Echo), options.config, 0, &options, &mut before)?;
    let discard = Ready::new(("discard", Discard), few, 2, &options, &mut before)?;
    let checksum = Ready::new(("checksum", Checksum), few, 11, &options, &mut before)?;
    let chargen = ("chargen", Chargen::default());
    let chargen = Ready::new(chargen, few, 12, &options, &mut before)?;
    app::commit();
    options.have_upgrades(before.as_mut())?;
    drop(before);

    let (server, listener) = echo.listen()?;
    // Nobody sends a datagram again that is answered late.
    let failure = start_datagrams(socket, options.listen, &server)?;
    let (discard, checksum) = (discard.start()?, checksum.start()?);
    let chargen = chargen.start()?;
    let drained = server.clone();
    app::at_the_end(move || {
        discard.stop();
        checksum.stop();
        // There is no end to what it sends.
        chargen.stop();
        drained.drain();
    })?;
    println!("echo: listen={}", options.listen);
    options.start_replacing("echo")?;
    server.run(&listener).map_err(said)?;
    failure.try_recv().map_or(Ok(()), Err)
}

/// Starts echo over UDP. If that fails the server is stopped.
fn start_datagrams(
    socket: Option<segue::handover::Socket<UdpSocket>>,
    address: SocketAddr,
    server: &Server<Echo>,
) -> Result<mpsc::Receiver<String>, String> {
    let at_address = move |error| format!("{address}: {error}");
    let socket = match socket {
        Some(socket) => socket.into_inner(),
        None => UdpSocket::bind(address).map_err(at_address)?,
    };
    let datagrams = Arc::new(Datagrams::new(socket).map_err(at_address)?);
    let paused = Arc::clone(&datagrams);
    segue::on_replace(move |next| {
        paused.pause();
        Ok(next.put_socket(UDP, paused.socket())?)
    });
    let paused = Arc::clone(&datagrams);
    segue::on_resume(move || paused.resume());
    let (failed, failure) = mpsc::channel();
    let stopped = server.clone();
    app::in_thread("udp", move || {
        if let Err(error) = datagrams.run() {
            // Who would receive it has ended already, or will look when the server has stopped.
            let _ = failed.send(at_address(error));
            stopped.stop();
        }
    })?;
    Ok(failure)
}

fn main() -> ExitCode {
    app::exit("echo", serve())
}
