package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// identities are the client certificates of a cluster: file name, user name and groups as the API server sees them.
var identities = []struct {
	file, user string
	groups     []string
}{
	{"admin", "admin", []string{"system:masters"}},
	{"kube-controller-manager", "system:kube-controller-manager", nil},
	{"kube-scheduler", "system:kube-scheduler", nil},
	{"kubelet", "system:node:" + nodeName, []string{"system:nodes"}},
	{"kube-proxy", "system:kube-proxy", nil},
	{"coredns", "system:coredns", []string{"system:masters"}},
	// Our own node agent may stand for several nodes, so it can't be held to the rights of one.
	{"node", "system:node:" + nodeName, []string{"system:nodes", "system:masters"}},
	// What the API server shows to a kubelet for logs and exec.
	{"kubelet-client", "kube-apiserver-kubelet-client", []string{"system:masters"}},
}

// servingNames are the names and addresses under which the API server and the kubelet are reached.
func servingNames(gateway string) ([]string, []net.IP) {
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + clusterDomain}
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(apiServiceIP)}
	if ip := net.ParseIP(gateway); ip != nil {
		addresses = append(addresses, ip)
	}
	return names, addresses
}

// authority is a certificate authority that lives for one cluster.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// writePKI makes all keys and certificates of a cluster, once.
func (c *Cluster) writePKI(gateway string) error {
	if _, err := os.Stat(c.path("pki")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	partial := c.path("pki.partial")
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := os.MkdirAll(partial, 0o700); err != nil {
		return err
	}
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	caKey, err := keyPEM(ca.key)
	if err != nil {
		return err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	accountsKey, err := keyPEM(accounts)
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.crt": ca.pem, "ca.key": caKey, "sa.key": accountsKey}
	names, addresses := servingNames(gateway)
	serving := &x509.Certificate{
		Subject: pkix.Name{CommonName: "kube-apiserver"}, DNSNames: names, IPAddresses: addresses,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if files["server.crt"], files["server.key"], err = ca.issue(serving); err != nil {
		return err
	}
	for _, identity := range identities {
		client := &x509.Certificate{
			Subject:     pkix.Name{CommonName: identity.user, Organization: identity.groups},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		if files[identity.file+".crt"], files[identity.file+".key"], err = ca.issue(client); err != nil {
			return err
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(partial, name), data, 0o600); err != nil {
			return err
		}
	}
	return os.Rename(partial, c.path("pki"))
}

// writeKubeconfigs gives each client a kubeconfig of its own, and the admin's to the user under the plain name.
func (c *Cluster) writeKubeconfigs() error {
	for _, identity := range identities {
		var files [3][]byte
		for i, name := range []string{"ca.crt", identity.file + ".crt", identity.file + ".key"} {
			data, err := os.ReadFile(c.path("pki", name))
			if err != nil {
				return err
			}
			files[i] = data
		}
		config := kubeconfig(c.Name, c.server(), files[0], files[1], files[2])
		if err := writeFile(c.kubeconfig(identity.file), config, 0o600); err != nil {
			return err
		}
		if identity.file == "admin" {
			if err := writeFile(c.path("kubeconfig"), config, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

func kubeconfig(name, server string, ca, cert, key []byte) []byte {
	encode := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster: {server: %[2]q, certificate-authority-data: %[3]s}
users:
- name: %[1]s
  user: {client-certificate-data: %[4]s, client-key-data: %[5]s}
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[1]s}
current-context: %[1]s
`, "collect-"+name, server, encode(ca), encode(cert), encode(key))
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate(&x509.Certificate{Subject: pkix.Name{CommonName: "collect test cluster"}})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage |= x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, pem: pemOf("CERTIFICATE", der)}, nil
}

func (a *authority) issue(template *x509.Certificate) (cert, key []byte, err error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate(template), a.cert, signer.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	key, err = keyPEM(signer)
	return pemOf("CERTIFICATE", der), key, err
}

// certificate fills in what all certificates share.
func certificate(template *x509.Certificate) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // the system has no randomness
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().AddDate(1, 0, 0)
	template.KeyUsage |= x509.KeyUsageDigitalSignature
	return template
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	if err != nil {
		return nil, err
	}
	return pemOf("EC PRIVATE KEY", der), nil
}

func pemOf(kind string, der []byte) []byte {
	var out bytes.Buffer
	_ = pem.Encode(&out, &pem.Block{Type: kind, Bytes: der}) // a buffer takes everything
	return out.Bytes()
}
