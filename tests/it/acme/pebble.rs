//! pebble, Let's Encrypt's ACME server for tests, and the name server that it asks.

use serde_json::json;
use skep::lab::eventually;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// How it behaves.
#[derive(Clone, Debug)]
pub struct PebbleConfig {
    /// Where it listens.
    pub address: IpAddr,
    /// Nonces of a hundred that it refuses.
    pub refused_nonces: u8,
    /// A key id and its key in base64url: accounts need one.
    pub external: Option<(String, String)>,
    /// Longest time that it waits before each validation, in seconds; drawn.
    pub slow: u8,
    /// A process in whose network namespace it runs; if absent, the calling thread's.
    pub beside: Option<u32>,
}

impl PebbleConfig {
    fn command(&self, program: &str) -> Command {
        let Some(pid) = self.beside else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{pid}/ns/net")).arg(program);
        command
    }
}

impl Default for PebbleConfig {
    fn default() -> Self {
        Self { address: [127, 0, 0, 1].into(), refused_nonces: 0, external: None, slow: 0, beside: None }
    }
}

/// It and its name server end with this.
pub struct Pebble {
    config: PebbleConfig,
    dir: PathBuf,
    server: Child,
    _names: Child,
}

/// Certificate and key of its listener, PEM.
const LISTENER: &str = "listener.pem";
/// The log of what it does.
const LOG: &str = "pebble.log";

impl Pebble {
    /// Starts it in a directory.
    pub async fn start(dir: &Path, config: PebbleConfig) -> Self {
        std::fs::create_dir_all(dir).expect("a directory");
        let made = skep::trust::self_signed(vec!["localhost".to_owned(), config.address.to_string()]).expect("a certificate");
        let (certificate, key) = super::super::http::pem_of(&made);
        std::fs::write(dir.join(LISTENER), &certificate).expect("written");
        std::fs::write(dir.join("listener.key"), key).expect("written");
        let at = |port: u16| std::net::SocketAddr::from((config.address, port)).to_string();
        let mut pebble = json!({
            "listenAddress": at(14000), "managementListenAddress": at(15000),
            "certificate": dir.join(LISTENER), "privateKey": dir.join("listener.key"), "httpPort": 80, "tlsPort": 443,
            "retryAfter": { "authz": 1, "order": 1 },
        });
        if let Some((id, key)) = &config.external {
            pebble["externalAccountBindingRequired"] = json!(true);
            pebble["externalAccountMACKeys"] = json!({ id: key });
        }
        std::fs::write(dir.join("pebble.json"), json!({ "pebble": pebble }).to_string()).expect("written");
        let mut names = config.command("pebble-challtestsrv");
        names.args(["-dns01", &at(8053), "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", ""]);
        names.args(["-tlsalpn01", "", "-management", &at(8055)]).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let names = names.spawn().expect("pebble-challtestsrv; config/install-tools installs it");
        let server = serve(dir, &config);
        let pebble = Self { config, dir: dir.to_owned(), server, _names: names };
        pebble.is_up().await;
        pebble
    }

    /// Stops and starts it: it has lost its accounts, orders and root.
    pub async fn restart(&mut self) {
        let _ = self.server.kill().await;
        self.server = serve(&self.dir, &self.config);
        self.is_up().await;
    }

    async fn is_up(&self) {
        eventually("pebble to answer", Duration::from_secs(15), || async {
            self.curl(&["-f", &self.directory()]).await.map(drop)
        })
        .await
        .expect("it answers");
    }

    pub fn directory(&self) -> String {
        format!("https://{}/dir", std::net::SocketAddr::from((self.config.address, 14000)))
    }

    /// The file that its listener is verified with.
    pub fn listener(&self) -> PathBuf {
        self.dir.join(LISTENER)
    }

    /// URL of a command of the name server.
    pub fn names(&self, verb: &str) -> String {
        format!("http://{}/{verb}", std::net::SocketAddr::from((self.config.address, 8055)))
    }

    /// The root of the certificates that it issues, as a file.
    pub async fn root(&self) -> PathBuf {
        let url = format!("https://{}/roots/0", std::net::SocketAddr::from((self.config.address, 15000)));
        let pem = self.curl(&["-f", &url]).await.expect("a root");
        let path = self.dir.join("root.pem");
        std::fs::write(&path, pem).expect("written");
        path
    }

    /// The only address of a name.
    pub async fn set_address(&self, name: &str, address: IpAddr) {
        let body = json!({ "host": name, "addresses": [address] }).to_string();
        let verb = if address.is_ipv4() { "add-a" } else { "add-aaaa" };
        self.curl(&["-f", &self.names(verb), "-d", &body]).await.expect("set");
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join(LOG)).unwrap_or_default()
    }

    async fn curl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut curl = self.config.command("curl");
        skep::lab::output(curl.args(["-sSk", "--max-time", "5"]).args(arguments)).await
    }
}

fn serve(dir: &Path, config: &PebbleConfig) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join(LOG)).expect("a log");
    let mut server = config.command("env");
    server
        .arg(format!("PEBBLE_VA_NOSLEEP={}", u8::from(config.slow == 0)))
        .arg(format!("PEBBLE_VA_SLEEPTIME={}", config.slow))
        .arg("PEBBLE_AUTHZREUSE=100")
        .arg(format!("PEBBLE_WFE_NONCEREJECT={}", config.refused_nonces));
    server.args(["pebble", "-config"]).arg(dir.join("pebble.json"));
    server.arg("-dnsserver").arg(std::net::SocketAddr::from((config.address, 8053)).to_string());
    server
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("pebble; config/install-tools installs it")
}
