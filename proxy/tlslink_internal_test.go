package proxy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// testPair is a certificate of its own making; nobody checks it here.
func testPair(tb testing.TB) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// tap is a client's connection that can keep what is written instead of sending it.
type tap struct {
	net.Conn
	hold bool
	held []byte
}

func (c *tap) Write(p []byte) (int, error) {
	if c.hold {
		c.held = append(c.held, p...)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// newTestLoop is a loop that runs until the test ends.
func newTestLoop(tb testing.TB) *loop {
	tb.Helper()
	l, err := newLoop()
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.run()
	}()
	tb.Cleanup(func() { l.stop(); <-done })
	return l
}

// tlsPair is a link and the client at its other end, which is a plain tls.Conn.
func tlsPair(tb testing.TB) (*tlsLink, *tls.Conn) {
	tb.Helper()
	l := newTestLoop(tb)
	ln, err := net.Listen("tcp", "127.0.0.1:0") // of which a send may take a part of a record
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	c, err := newSock(l, accepted)
	if err != nil {
		tb.Fatal(err)
	}
	client := tls.Client(&tap{Conn: nc}, &tls.Config{
		InsecureSkipVerify: true, DynamicRecordSizingDisabled: true,
	})
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	link, err := newTLSLink(c, nil, testServer(testPair(tb)))
	if err = errors.Join(err, <-shaken); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = nc.Close(); _ = link.Close() })
	return link, client
}

func testServer(pair tls.Certificate) func(net.Conn) *tls.Conn {
	return func(n net.Conn) *tls.Conn {
		return tls.Server(n, &tls.Config{
			Certificates: []tls.Certificate{pair}, DynamicRecordSizingDisabled: true,
		})
	}
}

// The buffers that crypto/tls keeps are where trim looks for them.
func TestTLSBuffersAreFound(t *testing.T) {
	if len(tlsBuffers) != 2 {
		t.Fatalf("found %d buffers in tls.Conn", len(tlsBuffers))
	}
	link, client := tlsPair(t)
	sent := make(chan error, 1)
	go func() {
		_, err := client.Write(make([]byte, 16<<10))
		sent <- err
	}()
	if _, err := io.ReadFull(link, make([]byte, 16<<10)); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	size := func() (n int) {
		for _, at := range tlsBuffers {
			n += (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(link.tls), at)).Cap()
		}
		return n
	}
	if before := size(); before < 16<<10 {
		t.Fatalf("%d bytes are kept before", before)
	}
	link.trim()
	if after := size(); after > 4<<10 {
		t.Errorf("%d bytes are kept", after)
	}
	go func() { _, _ = client.Write([]byte("again")) }()
	got := make([]byte, 5)
	if _, err := io.ReadFull(link, got); err != nil || string(got) != "again" {
		t.Errorf("read %q, %v", got, err)
	}
}

// What the socket has no room for waits, is bounded, and leaves by itself; nothing is taken
// meanwhile, and no byte is lost or doubled.
func TestTLSWritesWaitForRoom(t *testing.T) {
	link, client := tlsPair(t)
	data := make([]byte, 4<<20)
	_, _ = rand.Read(data)
	n, err := link.tryWrite(data)
	if !errors.Is(err, errAgain) || n == 0 || n == len(data) {
		t.Fatalf("wrote %d, %v", n, err)
	}
	waits := link.pipe.waiting()
	if waits == 0 || waits > tlsRecordBytes+256 {
		t.Errorf("%d bytes wait", waits)
	}
	if st, ok := link.sendState(); !ok || st.queued == 0 {
		t.Errorf("state %+v", st)
	}
	if m, err := link.tryWrite(data[n:]); m != 0 || !errors.Is(err, errAgain) {
		t.Errorf("took %d more, %v", m, err)
	}
	got := make([]byte, len(data))
	_ = client.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(client, got[:n]); err != nil { // without another write
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := link.Write(data[n:])
		wrote <- err
	}()
	if _, err := io.ReadFull(client, got[n:]); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil || !bytes.Equal(got, data) {
		t.Errorf("other bytes arrived, or %v", err)
	}
}

// A record that comes in pieces, with times in between in which nothing is there, and a deadline
// that passes in the middle of one, end nothing.
func TestTLSRecordInPieces(t *testing.T) {
	link, client := tlsPair(t)
	at := client.NetConn().(*tap)
	at.hold = true
	if _, err := client.Write([]byte("in pieces")); err != nil {
		t.Fatal(err)
	}
	record := at.held
	at.hold = false
	p := make([]byte, 64)
	for i := range record {
		if n, err := link.tryRead(p); n != 0 || !errors.Is(err, errAgain) {
			t.Fatalf("after %d bytes: %d, %v", i, n, err)
		}
		if link.pipe.pooled != nil {
			t.Fatal("a buffer is kept")
		}
		if i == 3 {
			_ = link.SetReadDeadline(time.Unix(1, 0))
			if _, err := link.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			_ = link.SetReadDeadline(time.Time{})
		}
		if st := link.probe(); st != peerQuiet {
			t.Fatalf("peer is %v", st)
		}
		if _, err := at.Write(record[i : i+1]); err != nil {
			t.Fatal(err)
		}
		awaitReadable(t, link.sock)
	}
	if st := link.probe(); st != peerReadable {
		t.Errorf("peer is %v", st)
	}
	if n, err := link.tryRead(p); string(p[:n]) != "in pieces" || err != nil {
		t.Errorf("read %q, %v", p[:n], err)
	}
}

// awaitReadable waits until the loop has told of the bytes.
func awaitReadable(t *testing.T, c *sock) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		c.mu.Lock()
		rd := c.rd
		c.mu.Unlock()
		if rd {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing became readable")
		}
	}
}

// Messages that TLS has after the handshake are answered in between: OpenSSL asks for new keys
// here, both ways, and goes on with them.
func TestTLSKeyUpdate(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is not installed")
		}
		t.Skip("openssl is not installed")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmd := exec.Command(openssl, "s_client", "-connect", ln.Addr().String(), "-tls1_3")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newSock(newTestLoop(t), nc)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	link, err := newTLSLink(c, nil, testServer(testPair(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	for i, key := range []string{"", "K\n", "k\n", "K\n"} {
		line := fmt.Sprintf("line %d\n", i)
		if _, err := io.WriteString(in, key); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // s_client takes a command only at the start of a read
		if _, err := io.WriteString(in, line); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(line))
		if _, err := io.ReadFull(link, got); err != nil || string(got) != line {
			t.Fatalf("read %q, %v", got, err)
		}
		if _, err := link.Write([]byte("answer " + line)); err != nil {
			t.Fatal(err)
		}
	}
	_ = link.Close()
	_ = cmd.Wait()
	out := said.String()
	if !strings.Contains(out, "KEYUPDATE") || !strings.Contains(out, "answer line 3") {
		t.Errorf("s_client says:\n%s", out)
	}
}

// Session tickets, which a server sends by itself, are no data, and do not get into its way.
func TestTLSTicketsAreNoData(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	server := tls.Server(accepted, &tls.Config{Certificates: []tls.Certificate{testPair(t)}})
	shaken := make(chan error, 1)
	go func() { shaken <- server.Handshake() }()
	c, err := newSock(newTestLoop(t), nc)
	if err != nil {
		t.Fatal(err)
	}
	link, err := newTLSLink(c, nil, func(n net.Conn) *tls.Conn {
		return tls.Client(n, &tls.Config{
			InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1),
		})
	})
	if err = errors.Join(err, <-shaken); err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	if st := link.probe(); st != peerQuiet {
		t.Errorf("peer is %v", st)
	}
	if _, err := link.tryRead(make([]byte, 1)); !errors.Is(err, errAgain) {
		t.Error(err)
	}
	if _, err := server.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	awaitReadable(t, link.sock)
	if st := link.probe(); st != peerReadable {
		t.Errorf("peer is %v", st)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(link, got); err != nil || string(got) != "data" {
		t.Errorf("read %q, %v", got, err)
	}
}

// A peer that makes TLS answer and takes nothing does not make the answers pile up.
func TestTLSPendingIsBounded(t *testing.T) {
	link, _ := tlsPair(t)
	if _, err := link.tryWrite(make([]byte, 4<<20)); !errors.Is(err, errAgain) {
		t.Fatal(err)
	}
	answer := make([]byte, 27) // a key update
	var err error
	for n := 0; err == nil; n++ {
		if _, err = link.pipe.Write(answer); n > tlsPendingMax {
			t.Fatal("no bound")
		}
	}
	if !errors.Is(err, errTLSPending) || link.pipe.waiting() > tlsPendingMax {
		t.Errorf("%v with %d bytes", err, link.pipe.waiting())
	}
}

// BenchmarkTLSLink is what a stream to a client costs, in the relay's pieces; the client decrypts
// in the same process.
func BenchmarkTLSLink(b *testing.B) {
	link, client := tlsPair(b)
	piece := make([]byte, bulkBufferBytes)
	b.SetBytes(int64(len(piece)))
	b.ReportAllocs()
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, bulkBufferBytes)
		for {
			if _, err := client.Read(buf); err != nil {
				done <- err
				return
			}
		}
	}()
	for b.Loop() {
		if _, err := link.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
	_ = link.Close()
	<-done
}
