// Package pki makes the certificates of a cluster: one authority, ECDSA P-256, valid for a year. A test bed lives for
// minutes to days, so nothing is ever renewed.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const lifetime = 365 * 24 * time.Hour

// Authority signs certificates and writes them into a directory as NAME.crt and NAME.key.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Request is one certificate: who it names in Kubernetes' terms (user and groups), and where it may serve.
type Request struct {
	// File is the base name of the two files.
	File string
	// User is the common name.
	User string
	// Groups are the organisations.
	Groups []string
	// Names and IPs are what a server with this certificate may be called.
	Names []string
	IPs   []string
}

// NewAuthority makes an authority with ca.crt and ca.key in dir, which must exist.
func NewAuthority(dir string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the authority's key: %w", err)
	}
	template, err := template("testbed", nil)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage |= x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing the authority's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading back the authority's certificate: %w", err)
	}
	a := &Authority{dir: dir, cert: cert, key: key}
	return a, a.write("ca", der, key)
}

// Issue signs one certificate, for clients and servers alike.
func (a *Authority) Issue(r Request) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the key of %s: %w", r.File, err)
	}
	template, err := template(r.User, r.Groups)
	if err != nil {
		return err
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	template.DNSNames = r.Names
	for _, text := range r.IPs {
		ip := net.ParseIP(text)
		if ip == nil {
			return fmt.Errorf("certificate %s: %q is no IP address", r.File, text)
		}
		template.IPAddresses = append(template.IPAddresses, ip)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("signing the certificate %s: %w", r.File, err)
	}
	return a.write(r.File, der, key)
}

// IssueKeyPair writes a bare key pair, NAME.key and NAME.pub: service accounts' tokens are signed with one.
func (a *Authority) IssueKeyPair(file string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the key pair %s: %w", file, err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encoding the public key %s: %w", file, err)
	}
	if err := a.writePEM(file+".pub", "PUBLIC KEY", public, 0o644); err != nil {
		return err
	}
	return a.writeKey(file, key)
}

func template(user string, groups []string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("drawing a serial number for %s: %w", user, err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: user, Organization: groups},
		// A little back in time: the machine's clock may be set back by a second at any moment.
		NotBefore: time.Now().Add(-5 * time.Minute),
		NotAfter:  time.Now().Add(lifetime),
		KeyUsage:  x509.KeyUsageDigitalSignature,
	}, nil
}

func (a *Authority) write(file string, der []byte, key *ecdsa.PrivateKey) error {
	if err := a.writePEM(file+".crt", "CERTIFICATE", der, 0o644); err != nil {
		return err
	}
	return a.writeKey(file, key)
}

func (a *Authority) writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the key %s: %w", file, err)
	}
	return a.writePEM(file+".key", "EC PRIVATE KEY", der, 0o600)
}

func (a *Authority) writePEM(file, kind string, der []byte, mode os.FileMode) error {
	path := filepath.Join(a.dir, file)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
