package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"holdfast/pgwire"
)

// errNoServerTLS is a server that does not speak TLS.
var errNoServerTLS = errors.New("the server does not support TLS")

// dialServer connects to a server, with TLS as proxy.server_tls.mode says; the socket is on that
// loop. It tells what a login can make of the connection.
func (p *Proxy) dialServer(ctx context.Context, on *loop, addr string,
) (link, pgwire.LoginOptions, error) {
	opts := pgwire.LoginOptions{Protocol: pgwire.Protocol32}
	cfg := p.tls.get().server
	c, err := p.dialSock(ctx, on, addr)
	switch {
	case err != nil:
		return nil, opts, err
	case cfg == nil:
		return c, opts, nil
	}
	l, err := p.encryptServer(ctx, c, serverConfig(cfg, addr))
	prefer := p.cfg.ServerTLS.Mode == SSLPrefer
	switch {
	case err == nil:
		if certs := l.peerTLS().PeerCertificates; len(certs) > 0 {
			opts.Binding = pgwire.EndPointBinding(certs[0])
		}
		return l, opts, nil
	case prefer && errors.Is(err, errNoServerTLS):
		return c, opts, nil
	}
	c.reset()
	if prefer && ctx.Err() == nil { // as libpq: a second attempt without
		c, err = p.dialSock(ctx, on, addr)
		if err != nil {
			return nil, opts, err
		}
		return c, opts, nil
	}
	return nil, opts, serverTLSError(err)
}

func (p *Proxy) dialSock(ctx context.Context, on *loop, addr string) (*sock, error) {
	nc, err := p.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial backend %s: %w", addr, err)
	}
	return newSock(on, nc)
}

// serverConfig is cfg for that server, by whose name verify-full knows it.
func serverConfig(cfg *tls.Config, addr string) *tls.Config {
	cfg = cfg.Clone()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		cfg.ServerName = host
	}
	return cfg
}

// encryptServer asks for TLS and runs the handshake. errNoServerTLS leaves the connection usable.
func (p *Proxy) encryptServer(ctx context.Context, c *sock, cfg *tls.Config) (*tlsLink, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := askServer(c); err != nil {
		return nil, err
	}
	return newTLSLink(c, nil, func(n net.Conn) *tls.Conn { return tls.Client(n, cfg) })
}

// askServer sends an SSLRequest. It reads one byte and no more: what came in clear behind it would
// be taken for protected (CVE-2021-23222).
func askServer(c net.Conn) error {
	if _, err := c.Write(pgwire.AppendSSLRequest(nil)); err != nil {
		return fmt.Errorf("ask for tls: %w", err)
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return fmt.Errorf("ask for tls: %w", err)
	}
	switch b[0] {
	case 'S':
		return nil
	case 'N':
		return errNoServerTLS
	}
	return fmt.Errorf("ask for tls: the server answers %q", b[0])
}

// serverTLSError makes an answer of what another attempt would only repeat: a server without TLS,
// or with a certificate that is not to be trusted.
func serverTLSError(err error) error {
	var bad *tls.CertificateVerificationError
	if !errors.Is(err, errNoServerTLS) && !errors.As(err, &bad) {
		return err
	}
	e := fatal(pgwire.NewError(pgwire.CodeInvalidAuth,
		"the proxy could not make a secure connection to the primary"))
	e.Detail = err.Error()
	e.Hint = "See proxy.server_tls."
	return e
}

// dialCancel is a connection for a cancel request, encrypted where sessions are.
func (p *Proxy) dialCancel(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := p.dialer.DialContext(ctx, network, addr)
	cfg := p.tls.get().server
	if err != nil || cfg == nil {
		return c, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = askServer(c)
	if err == nil {
		t := tls.Client(c, serverConfig(cfg, addr))
		if err = t.HandshakeContext(ctx); err == nil {
			return t, nil
		}
	}
	prefer := p.cfg.ServerTLS.Mode == SSLPrefer
	if prefer && errors.Is(err, errNoServerTLS) {
		return c, nil
	}
	_ = c.Close()
	if prefer && ctx.Err() == nil { // as dialServer
		return p.dialer.DialContext(ctx, network, addr)
	}
	return nil, err
}
