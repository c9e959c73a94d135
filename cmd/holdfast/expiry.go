package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// CertificateStatus tells when a certificate that a node uses ends.
type CertificateStatus struct {
	// Certificate is node, ca or clients.
	Certificate string    `json:"certificate"`
	Ends        time.Time `json:"ends"`
	// begins is since when it is good: what is made for weeks is not replaced months before.
	begins time.Time
}

func statusOfCertificate(name string, c *x509.Certificate) CertificateStatus {
	return CertificateStatus{Certificate: name, Ends: c.NotAfter, begins: c.NotBefore}
}

// The certificates of a node, as they are called in the status and in metrics.
const (
	certNode    = "node"
	certCA      = "ca"
	certClients = "clients"
)

// certificates tells of those that are in use now: the group's are read at the start, that for
// clients whenever its file changes.
func (n *node) certificates() []CertificateStatus {
	out := groupCertificates(n.election.CertificateChains())
	if n.proxy != nil {
		if c := n.proxy.Certificate(); c != nil {
			out = append(out, statusOfCertificate(certClients, c))
		}
	}
	return out
}

// groupCertificates tells of the node's own and of the authority. While a CA is being replaced
// there may be two chains, of which one is enough.
func groupCertificates(chains [][]*x509.Certificate) []CertificateStatus {
	var node, ca CertificateStatus
	for _, chain := range chains {
		node = statusOfCertificate(certNode, chain[0])
		if last := chain[len(chain)-1]; last.NotAfter.After(ca.Ends) {
			ca = statusOfCertificate(certCA, last)
		}
	}
	if node.Certificate == "" {
		return nil
	}
	return []CertificateStatus{node, ca}
}

// expiryWarning is how long before its end a certificate becomes a problem: 60 days, and no more
// than a quarter of the time for which it was made. Those that are made for 90 days are replaced
// when 30 are left, as a rule.
func (c CertificateStatus) expiryWarning() time.Duration {
	return min(60*24*time.Hour, c.Ends.Sub(c.begins)/4)
}

// expiryProblems tells of the certificates that end soon, or have ended.
func expiryProblems(certs []CertificateStatus, now time.Time) []string {
	var out []string
	for _, c := range certs {
		left := c.Ends.Sub(now)
		if left > c.expiryWarning() {
			continue
		}
		when := fmt.Sprintf("ends on %s, in %d days", c.Ends.UTC().Format(time.DateOnly),
			int(left.Hours()/24))
		if left <= 0 {
			when = "has ended on " + c.Ends.UTC().Format(time.DateOnly)
		}
		out = append(out, expiryWords[c.Certificate][0]+" "+when+": "+expiryWords[c.Certificate][1])
	}
	return out
}

// expiryWords name each certificate and say what to do.
var expiryWords = map[string][2]string{
	certNode: {"this node's certificate (group.tls.cert_file)", "make another with `holdfast cert " +
		"--node NAME=HOST --renew` and start this node again"},
	certCA: {"the certificate of the group's CA (group.tls.ca_file)",
		"no node lets another in after that; make a new CA as docs/monitoring.md says"},
	certClients: {"the certificate for clients (proxy.tls.cert_file)",
		"put another in its place, it is read without a restart"},
}

// expiryTick is the time between two warnings in the log.
const expiryTick = 24 * time.Hour

// runExpiry warns of certificates that end soon, at the start and once a day, until ctx ends.
func runExpiry(ctx context.Context, certs func() []CertificateStatus, log *zap.Logger) {
	t := time.NewTicker(expiryTick)
	defer t.Stop()
	for {
		for _, p := range expiryProblems(certs(), time.Now()) {
			log.Warn("certificate ends", zap.String("problem", p))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
