//! Who may speak to an agent over a network: TLS 1.3 with one key per instance.
//!
//! On one machine the kernel says who is at the other end of a socket. Between machines the
//! instance's own key does: every agent of an instance, and the control plane, derive the same
//! Ed25519 key from the instance's system password, present its raw public key (RFC 7250) and
//! accept no other. Nothing has to be handed out, and nothing expires.

use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use larder_model::{Address, Secret};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerMisbehaved, ServerConfig, SignatureScheme,
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A PKCS#8 v1 document around an Ed25519 seed (RFC 8410, section 7): these bytes, then the seed.
const PKCS8_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// Keeps the seed apart from every other use of the password.
const PURPOSE: &[u8] = b"larder agent api, ed25519 seed, version 1";

/// A stream of bytes to an agent.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A way to one agent: a pod's address, or a forwarded port.
#[async_trait]
pub trait Dial: Send + Sync {
    /// A new stream. The caller bounds the time.
    ///
    /// # Errors
    /// When there is no way through.
    async fn dial(&self) -> io::Result<Box<dyn Stream>>;

    /// What it leads to, for error messages.
    fn target(&self) -> String;
}

/// TCP to an address.
#[derive(Clone, Debug)]
pub struct TcpDial(pub Address);

#[async_trait]
impl Dial for TcpDial {
    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((self.0.host.as_str(), self.0.port)).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    fn target(&self) -> String {
        self.0.to_string()
    }
}

/// The key of one instance, for both ends of a connection. Cheap to clone.
#[derive(Clone)]
pub struct InstanceKey {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InstanceKey(***)")
    }
}

impl InstanceKey {
    /// The key that belongs to a secret of the instance, which is random and long: that of its agents
    /// ([`larder_model::local::NodeSecrets::of_agents`]).
    pub fn derive(secret: &Secret) -> Self {
        let mut seed = Sha256::new();
        seed.update(PURPOSE);
        seed.update([0]);
        seed.update(secret.expose().as_bytes());
        let mut pkcs8 = PKCS8_HEAD.to_vec();
        pkcs8.extend_from_slice(&seed.finalize());
        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8))
            .expect("every 32 bytes are an Ed25519 seed");
        let public = key.public_key().expect("Ed25519 keys of ring tell their public key");
        let public = CertificateDer::from(public.as_ref().to_vec());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let only = Arc::new(OnlyKey { public: public.clone(), provider: Arc::clone(&provider) });
        let own = Arc::new(CertifiedKey::new(vec![public], key));
        let versions = &[&rustls::version::TLS13];
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect("ring speaks TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&only) as Arc<dyn ServerCertVerifier>)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                Arc::clone(&own),
            )));
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("ring speaks TLS 1.3")
            .with_client_cert_verifier(only)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
        Self { client: Arc::new(client), server: Arc::new(server) }
    }

    /// Speaks as a client over `stream`. Cancel-safe in that the stream is then closed.
    ///
    /// # Errors
    /// When the other end does not have this key.
    pub async fn connect(&self, stream: Box<dyn Stream>) -> io::Result<impl Stream + use<>> {
        // Required by the protocol's client and looked at by nobody: the key is what counts.
        let name = ServerName::try_from("agent.larder").map_err(io::Error::other)?;
        TlsConnector::from(Arc::clone(&self.client)).connect(name, stream).await
    }

    /// Speaks as the server over `stream`.
    ///
    /// # Errors
    /// When the other end does not have this key.
    pub async fn accept<S: Stream>(&self, stream: S) -> io::Result<impl Stream + use<S>> {
        TlsAcceptor::from(Arc::clone(&self.server)).accept(stream).await
    }
}

/// Accepts one raw public key, from servers and from clients.
#[derive(Debug)]
struct OnlyKey {
    public: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl OnlyKey {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        if shown.as_ref() == self.public.as_ref() {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(shown.as_ref()),
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }
}

/// TLS 1.2 is not offered and has no raw public keys here.
fn old_protocol() -> Error {
    Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)
}

impl ServerCertVerifier for OnlyKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(old_protocol())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for OnlyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(old_protocol())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn key(password: &str) -> InstanceKey {
        InstanceKey::derive(&Secret::new(password))
    }

    /// What a byte from the client's end becomes at the server's, and the answer to it.
    async fn exchange(client: InstanceKey, server: InstanceKey) -> io::Result<u8> {
        let (here, there) = tokio::io::duplex(16 << 10);
        let serving = tokio::spawn(async move {
            let mut stream = server.accept(there).await?;
            let byte = stream.read_u8().await?;
            stream.write_u8(byte + 1).await?;
            stream.flush().await
        });
        let answer = async {
            let mut stream = client.connect(Box::new(here)).await?;
            stream.write_u8(41).await?;
            stream.flush().await?;
            stream.read_u8().await
        };
        let answer = answer.await;
        let served = serving.await.expect("no panic");
        served.and(answer)
    }

    #[tokio::test]
    async fn both_ends_with_the_same_password_understand_each_other() {
        assert_eq!(exchange(key("one"), key("one")).await.expect("answer"), 42);
    }

    #[tokio::test]
    async fn another_instances_key_is_refused_by_both_ends() {
        assert!(exchange(key("one"), key("two")).await.is_err());
    }

    #[test]
    fn debug_output_shows_no_key() {
        assert_eq!(format!("{:?}", key("one")), "InstanceKey(***)");
    }
}
