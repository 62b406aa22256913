package pki

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func authority(t *testing.T) (*Authority, string, *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	a, err := NewAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("ca.crt holds no certificate")
	}
	return a, dir, pool
}

func TestIssuedCertificateNamesUserGroupsAndAddresses(t *testing.T) {
	a, dir, pool := authority(t)
	err := a.Issue(Request{File: "n", User: "system:node:n", Groups: []string{"system:nodes"}, Names: []string{"n"}, IPs: []string{"10.99.0.11"}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "n.crt"), filepath.Join(dir, "n.key"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"n", "10.99.0.11"} {
		options := x509.VerifyOptions{Roots: pool, DNSName: name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		if _, err := cert.Verify(options); err != nil {
			t.Errorf("as server %s: %v", name, err)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("as client: %v", err)
	}
	if cert.Subject.CommonName != "system:node:n" || !slices.Equal(cert.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("subject: %v", cert.Subject)
	}
}

func TestPrivateKeysAreReadableByTheirOwnerOnly(t *testing.T) {
	a, dir, _ := authority(t)
	if err := a.IssueKeyPair("sa"); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"ca.key", "sa.key"} {
		info, err := os.Stat(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", file, info.Mode())
		}
	}
}

func TestWhatIsNoAddressIsRefused(t *testing.T) {
	a, _, _ := authority(t)
	if err := a.Issue(Request{File: "x", User: "x", IPs: []string{"10.99.0.300"}}); err == nil {
		t.Error("10.99.0.300 went through")
	}
}
