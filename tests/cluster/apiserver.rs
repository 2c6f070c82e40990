//! A real kube-apiserver over a real etcd, in the manner of envtest: no kubelet, no controllers. Tests create the objects that
//! those would, and patch their status.
//!
//! Both are children of a shell that waits for the end of its standard input, so that they end with the test program,
//! however it ends.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use kube::discovery::Scope;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// How long a start may take on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Token of the administrator.
pub const ADMIN: &str = "administrator";

fn binary(tool: &str, variable: &str) -> PathBuf {
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let found = environment.get(variable).map(PathBuf::from).or_else(|| {
        let assets = environment.get("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let path = environment.get("PATH").into_iter().flat_map(|p| std::env::split_paths(p).collect::<Vec<_>>());
        assets.into_iter().chain(path).map(|folder| folder.join(tool)).find(|file| file.is_file())
    });
    found.unwrap_or_else(|| {
        panic!("this test needs {tool}: run `make test`, or set {variable} to what `scripts/get-kube {tool}` prints")
    })
}

/// A port for a program that cannot be asked which one it got. It lies below those that the system gives to whoever asks for
/// any, and is given once, so that nobody takes it before the program does.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(0..SOME)));
    const FIRST: u16 = 20_000;
    const SOME: u16 = 12_000;
    loop {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % SOME;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A program that ends when this is dropped or the test program ends.
struct Process {
    shell: Child,
    input: Option<ChildStdin>,
}

impl Process {
    fn start(program: &Path, args: &[String], log: &Path) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let script = "\"$@\" & child=$!; read -r _; kill -9 $child; wait $child";
        let mut shell = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let input = shell.stdin.take();
        Self { shell, input }
    }

    /// Kills it at once and waits until it is gone.
    fn kill(&mut self) {
        drop(self.input.take());
        self.shell.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An etcd and what several API servers over it have in common.
struct Store {
    url: String,
    folder: TempDir,
    _etcd: Process,
}

/// An API server.
pub struct ApiServer {
    store: std::sync::Arc<Store>,
    port: u16,
    process: Option<Process>,
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

impl ApiServer {
    /// Starts etcd and an API server over it, and waits until it serves.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (client, peer) = (free_port(), free_port());
        let url = format!("http://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let args = [
            format!("--data-dir={}", at("etcd").display()),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync".to_owned(),
        ];
        let etcd = Process::start(&binary("etcd", "ETCD_BIN"), &args, &at("etcd.log"));

        let authority = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let certificate = params.self_signed(&authority).unwrap();
        std::fs::write(at("ca.crt"), certificate.pem()).unwrap();
        let issuer = rcgen::Issuer::new(params, authority);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        std::fs::write(at("server.crt"), leaf.pem()).unwrap();
        std::fs::write(at("server.key"), key.serialize_pem()).unwrap();
        // Any key will do to sign the tokens of service accounts.
        let tokens = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        std::fs::write(at("tokens.key"), tokens.serialize_pem()).unwrap();
        std::fs::write(at("tokens.pub"), tokens.public_key_pem()).unwrap();
        std::fs::write(at("tokens.csv"), format!("{ADMIN},admin,1,\"system:masters\"\n")).unwrap();

        // Who asked for what and what they were told, for tests of what an account may do.
        let policy =
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n";
        std::fs::write(at("audit.yaml"), policy).unwrap();

        let store = Store { url, folder, _etcd: etcd };
        let mut server = Self { store: std::sync::Arc::new(store), port: free_port(), process: None };
        server.serve().await;
        server
    }

    /// Another API server over the same objects.
    pub async fn another(&self) -> Self {
        let mut other = Self { store: std::sync::Arc::clone(&self.store), port: free_port(), process: None };
        other.serve().await;
        other
    }

    /// Starts, or starts again at the same address, and waits until it serves.
    pub async fn serve(&mut self) {
        let at = |name: &str| self.store.folder.path().join(name).display().to_string();
        let log = self.store.folder.path().join(format!("apiserver-{}.log", self.port));
        let args = [
            format!("--etcd-servers={}", self.store.url),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            format!("--tls-cert-file={}", at("server.crt")),
            format!("--tls-private-key-file={}", at("server.key")),
            format!("--cert-dir={}", at("certificates")),
            format!("--token-auth-file={}", at("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", at("tokens.pub")),
            format!("--service-account-signing-key-file={}", at("tokens.key")),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            // Nobody makes the account `default` of a namespace, which the plugin wants for every pod.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            format!("--audit-policy-file={}", at("audit.yaml")),
            format!("--audit-log-path={}", at("audit.log")),
            "--max-requests-inflight=0".to_owned(),
            "--max-mutating-requests-inflight=0".to_owned(),
            "--enable-priority-and-fairness=false".to_owned(),
        ];
        self.process = Some(Process::start(&binary("kube-apiserver", "KUBE_APISERVER_BIN"), &args, &log));
        let client = self.admin();
        let ready = async {
            loop {
                let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
                if client.request_text(request).await.is_ok_and(|text| text == "ok") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(START, ready).await.is_err() {
            panic!("kube-apiserver does not become ready:\n{}\n{}", tail(&log), tail(Path::new(&at("etcd.log"))));
        }
    }

    /// Kills it without a word.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// A kubeconfig for whoever has `token`.
    pub fn kubeconfig(&self, token: &str) -> Kubeconfig {
        let ca = self.store.folder.path().join("ca.crt");
        serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "certificate-authority": ca } }],
            "users": [{ "name": "test", "user": { "token": token } }],
        }))
        .unwrap()
    }

    /// The same as a file.
    pub fn kubeconfig_file(&self, token: &str) -> String {
        let path = self.store.folder.path().join(format!("kubeconfig-{:016x}", fastrand::u64(..)));
        std::fs::write(&path, serde_json::to_string(&self.kubeconfig(token)).unwrap()).unwrap();
        path.display().to_string()
    }

    /// A client that may do everything.
    pub fn admin(&self) -> Client {
        let url = format!("https://127.0.0.1:{}", self.port).parse().unwrap();
        let mut config = kube::Config::new(url);
        let ca = std::fs::read(self.store.folder.path().join("ca.crt")).unwrap();
        config.root_cert = Some(vec![rustls_pem(&ca)]);
        config.auth_info.token = Some(ADMIN.to_owned().into());
        Client::try_from(config).unwrap()
    }

    /// A new namespace whose name begins with `prefix`.
    pub async fn namespace(&self, prefix: &str) -> String {
        let name = format!("{prefix}-{:08x}", fastrand::u32(..));
        let object: Namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        Api::<Namespace>::all(self.admin()).create(&PostParams::default(), &object).await.unwrap();
        name
    }

    /// A token of the service account `name`, which is created.
    pub async fn service_account(&self, namespace: &str, name: &str) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin(), namespace);
        let object: ServiceAccount = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        accounts.create(&PostParams::default(), &object).await.unwrap();
        self.token(namespace, name).await
    }

    /// A token of an account that exists.
    pub async fn token(&self, namespace: &str, name: &str) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin(), namespace);
        let spec = TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = accounts.create_token_request(name, &PostParams::default(), &request).await.unwrap();
        answer.status.unwrap().token.unwrap()
    }

    /// What `user` asked for up to now: verb, path and status.
    pub fn audit(&self, user: &str) -> Vec<(String, String, u64)> {
        let text = std::fs::read_to_string(self.store.folder.path().join("audit.log")).unwrap();
        let of = |line: &str| {
            let event: Value = serde_json::from_str(line).ok()?;
            let field = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            let status = event.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or(0);
            (field("/user/username") == user).then(|| (field("/verb"), field("/requestURI"), status))
        };
        text.lines().filter_map(of).collect()
    }

    /// Creates or changes any object, as `kubectl apply --server-side` does.
    pub async fn apply(&self, object: &Value, namespace: &str) -> Value {
        apply(&self.admin(), object, namespace, false).await.unwrap_or_else(|e| panic!("{e}\n{object:#}"))
    }
}

/// Applies `object`, into `namespace` if it is of a namespaced kind and names none; with `dry` nothing is stored.
pub async fn apply(client: &Client, object: &Value, namespace: &str, dry: bool) -> kube::Result<Value> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    let kind = GroupVersionKind::gvk(group, version, text("kind"));
    // A kind whose definition was only just applied takes a moment to appear.
    let mut found = kube::discovery::pinned_kind(client, &kind).await;
    for _ in 0..100 {
        if found.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        found = kube::discovery::pinned_kind(client, &kind).await;
    }
    let (resource, capabilities) = found?;
    let typed: DynamicObject = serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let own = typed.namespace();
            Api::namespaced_with(client.clone(), own.as_deref().unwrap_or(namespace), &resource)
        }
    };
    let mut params = PatchParams::apply("tests").force();
    params.dry_run = dry;
    params.field_validation = Some(kube::api::ValidationDirective::Strict);
    let stored = api.patch(&typed.name_any(), &params, &Patch::Apply(object)).await?;
    Ok(serde_json::to_value(stored).unwrap())
}

/// The DER of a PEM certificate.
fn rustls_pem(pem: &[u8]) -> Vec<u8> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(pem).unwrap().to_vec()
}

/// The API server that most tests share, each in a namespace of its own, with the definitions of `install`.
pub async fn shared() -> &'static ApiServer {
    static SHARED: OnceCell<ApiServer> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            let server = ApiServer::start().await;
            super::definitions::install(&server).await;
            server
        })
        .await
}
