package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"holdfast/pgwire"
)

// loginFunc logs in over a fresh connection, which it owns.
type loginFunc func(ctx context.Context, conn link, opts pgwire.LoginOptions) (*backend, error)

// logIn connects to a server and logs in. With the mode allow a server that lets nobody in without
// TLS is asked again with it.
func (p *Proxy) logIn(ctx context.Context, on *loop, addr string, login loginFunc,
) (*backend, error) {
	b, err := p.logInAs(ctx, on, addr, login)
	switch {
	case errors.Is(err, pgwire.ErrTooManyParams):
		p.metrics.limit(limitParameters)
	case errors.Is(err, pgwire.ErrParamsTooLarge):
		p.metrics.limit(limitParameterBytes)
	}
	return b, err
}

// logInAs is logIn without counting bounds that were reached.
func (p *Proxy) logInAs(ctx context.Context, on *loop, addr string, login loginFunc,
) (*backend, error) {
	conn, opts, err := p.dialServer(ctx, on, addr, p.cfg.ServerTLS.Mode != SSLAllow)
	if err != nil {
		return nil, err
	}
	b, err := login(ctx, conn, opts)
	var pe *pgwire.Error
	if p.cfg.ServerTLS.Mode != SSLAllow || !errors.As(err, &pe) ||
		pe.Code != pgwire.CodeInvalidAuth || ctx.Err() != nil {
		return b, err
	}
	if conn, opts, err = p.dialServer(ctx, on, addr, true); err != nil {
		return nil, pe // the first answer says more than that there is no TLS
	}
	return login(ctx, conn, opts)
}

// dialServer connects to a server, with TLS as proxy.server_tls.mode says, or without; the socket
// is on that loop. It tells what a login can make of the connection.
func (p *Proxy) dialServer(ctx context.Context, on *loop, addr string, encrypt bool,
) (link, pgwire.LoginOptions, error) {
	opts := pgwire.LoginOptions{Protocol: pgwire.Protocol32,
		ParamsMax:      p.cfg.ServerParametersMax,
		ParamsBytesMax: p.cfg.ServerParametersBytesMax}
	cfg := p.tls.get().server
	c, err := p.dialSock(ctx, on, addr)
	switch {
	case err != nil:
		return nil, opts, err
	case cfg == nil || !encrypt:
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
	case prefer && errors.Is(err, pgwire.ErrNoTLS):
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

// encryptServer asks for TLS and runs the handshake. pgwire.ErrNoTLS leaves the connection usable.
func (p *Proxy) encryptServer(ctx context.Context, c *sock, cfg *tls.Config) (*tlsLink, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := pgwire.AskTLS(c); err != nil {
		return nil, err
	}
	return newTLSLink(c, nil, func(n net.Conn) *tls.Conn { return tls.Client(n, cfg) })
}

// serverTLSError makes an answer of what another attempt would only repeat: a server without TLS,
// or with a certificate that is not to be trusted.
func serverTLSError(err error) error {
	var bad *tls.CertificateVerificationError
	if !errors.Is(err, pgwire.ErrNoTLS) && !errors.As(err, &bad) {
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
	mode, cfg := p.cfg.ServerTLS.Mode, p.tls.get().server
	switch {
	case mode == SSLAllow: // no door is in its way
		cfg = nil
	case cfg != nil:
		cfg = serverConfig(cfg, addr)
	}
	return pgwire.DialTLS(ctx, network, addr, cfg, mode == SSLPrefer, p.dialer.DialContext)
}
