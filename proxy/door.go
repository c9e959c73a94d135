package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// door is a client between its first byte and its session: the connection, with TLS or without,
// and what was read of it. One goroutine uses it.
type door struct {
	proxy *Proxy
	sock  *sock
	conn  link // sock, or TLS on it
	r     *pgwire.Reader
	// tls is nil without it; binding is the certificate's hash for SCRAM-SHA-256-PLUS.
	tls     *tls.ConnectionState
	binding []byte
	peer    net.Addr
	from    netip.Addr   // not valid on a Unix socket
	judged  *secretEntry // by which the client's proof is judged
}

func newDoor(p *Proxy, c *sock, peer net.Addr) *door {
	return &door{proxy: p, sock: c, conn: c, r: pgwire.NewReader(c, loginMessageMax), peer: peer}
}

// isLocal tells that the client came by a Unix socket.
func (d *door) isLocal() bool {
	_, ok := d.peer.(*net.UnixAddr)
	return ok
}

// startup reads up to the StartupMessage, TLS included, and tells what kind of connection is asked
// for. nil without an error is a connection that is done.
func (d *door) startup(ctx context.Context) (*pgwire.Startup, replication, error) {
	st, err := d.packets(ctx)
	if err != nil || st == nil {
		return nil, notReplication, err
	}
	if err := d.needsTLS(); err != nil {
		return nil, notReplication, err
	}
	kind, err := replicationOf(st)
	return st, kind, err
}

// packets reads what comes before authentication.
func (d *door) packets(ctx context.Context) (*pgwire.Startup, error) {
	first, err := d.r.Peek()
	if err != nil {
		return nil, errClientGone
	}
	if first == pgwire.TLSHandshakeByte {
		if err := d.direct(); err != nil {
			return nil, err
		}
	}
	for range 3 {
		st, err := pgwire.ReadStartup(d.r)
		if err != nil {
			return nil, err
		}
		switch st.Kind {
		case pgwire.StartupSSL:
			err = d.askedTLS()
		case pgwire.StartupGSS:
			err = d.answerAsked('N', "GSSAPI encryption")
		case pgwire.StartupCancel:
			d.proxy.cancelRequest(ctx, d.client(login{}).addr, st.CancelPID, st.CancelKey)
			return nil, nil
		default:
			return &st, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fatal(pgwire.NewError(pgwire.CodeProtocolViolation,
		"too many encryption requests"))
}

// needsTLS refuses a session without TLS where it is required.
func (d *door) needsTLS() error {
	if d.proxy.cfg.TLS.Mode != TLSRequire || d.tls != nil || d.isLocal() {
		return nil
	}
	e := pgwire.NewError(pgwire.CodeInvalidAuth, "the connection is not encrypted")
	e.Detail = "proxy.tls.mode is require."
	e.Hint = "Connect with sslmode=require, or a stricter one."
	return fatal(e)
}

// askedTLS answers an SSLRequest.
func (d *door) askedTLS() error {
	if d.proxy.tls.get().client == nil || d.tls != nil || d.isLocal() {
		return d.answerAsked('N', "SSL")
	}
	if err := d.answerAsked('S', "SSL"); err != nil {
		return err
	}
	return d.encrypt(nil)
}

// answerAsked answers a request for encryption. What came behind it was not protected, and must not
// be taken for something that was (CVE-2021-23214); PostgreSQL refuses it behind a no as well.
func (d *door) answerAsked(c byte, what string) error {
	behind := len(d.r.Buffered()) > 0
	if c == 'N' || !behind {
		if err := d.say(c); err != nil {
			return err
		}
	}
	if !behind {
		return nil
	}
	e := pgwire.NewError(pgwire.CodeProtocolViolation,
		"received unencrypted data after "+what+" request")
	e.Detail = "This could be either a client-software bug or evidence of an attempted " +
		"man-in-the-middle attack."
	return fatal(e)
}

// errDirectTLS is a client that begins with TLS and cannot be served so.
var errDirectTLS = errors.New("direct TLS")

// direct is a client that begins with a ClientHello: so that it cannot be one of another protocol
// that was led here, it must name ours (protocol-flow, SSL Session Encryption).
func (d *door) direct() error {
	if d.proxy.tls.get().client == nil {
		d.proxy.metrics.tlsHandshakes.WithLabelValues("failed").Inc()
		d.proxy.log.Debug("direct TLS, which is off")
		return errDirectTLS
	}
	if err := d.encrypt(d.r.Buffered()); err != nil {
		return err
	}
	if d.tls.NegotiatedProtocol != pgwire.ALPN {
		return fatal(pgwire.NewError(pgwire.CodeProtocolViolation, "received direct SSL "+
			"connection request without ALPN protocol negotiation extension"))
	}
	return nil
}

func (d *door) say(c byte) error {
	if _, err := d.conn.Write([]byte{c}); err != nil {
		return errClientGone
	}
	return nil
}

// encrypt runs the handshake; ahead are the bytes of it that were read already.
func (d *door) encrypt(ahead []byte) error {
	now := d.proxy.tls.get()
	l, err := newTLSLink(d.sock, ahead, func(c net.Conn) *tls.Conn {
		return tls.Server(c, now.client)
	})
	if err != nil {
		d.proxy.metrics.tlsHandshakes.WithLabelValues("failed").Inc()
		d.proxy.log.Debug("tls handshake failed", zap.Error(err))
		return errClientGone
	}
	d.proxy.metrics.tlsHandshakes.WithLabelValues("ok").Inc()
	st := l.peerTLS()
	d.conn, d.r, d.tls = l, pgwire.NewReader(l, loginMessageMax), &st
	d.binding = now.binding
	return nil
}
