package pgwire

import (
	"crypto"
	_ "crypto/sha256" // SHA-224, SHA-256
	_ "crypto/sha512" // SHA-384, SHA-512
	"crypto/x509"
)

// EndPointBinding is the data of the channel binding tls-server-end-point (RFC 5929, section 4.1):
// the hash of the server's certificate, by the hash of its signature, SHA-256 in the place of MD5
// and SHA-1. It is nil if the signature has no single hash, as Ed25519: there is no binding then.
func EndPointBinding(cert *x509.Certificate) []byte {
	if cert == nil {
		return nil
	}
	var h crypto.Hash
	switch cert.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.SHA256WithRSA,
		x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256:
		h = crypto.SHA256
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		h = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		h = crypto.SHA512
	default:
		return nil
	}
	sum := h.New()
	sum.Write(cert.Raw)
	return sum.Sum(nil)
}
