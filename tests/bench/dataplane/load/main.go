// Load for the bench of the data plane: servers for the nodes, and clients that measure, each for a given time.
//
//	load serve PORT NAME               answers TCP and UDP until it is killed; NAME is one byte
//	load stream SECONDS N TARGETS      N streams: bytes that arrived
//	load connect SECONDS N TARGETS     N threads connect, ask, are answered and close: connections, failures
//	load roundtrip SECONDS 1 TARGETS   a request and an answer of 64 bytes on one connection: p50, p99
//	load datagrams SECONDS N TARGETS   datagrams of 64 bytes, sent in N flows in turn: how many were sent
//	load where 0 N TARGETS             N flows from the source ports 20000...: which node answers each
//
// TARGETS are ADDRESS:PORT,..., taken in turn. The result is one line of JSON.
//
// System calls are raw and block: the kernel's path is what is measured, not a runtime's poller. So each thread keeps
// a processor of the runtime for itself (see main), and nothing is collected as garbage.
package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	serverThreads = 16 // connections that a node serves at once
	bufferSize    = 256 << 10
	small         = 64 // bytes of a request, an answer and a datagram
	patience      = 2  // seconds that a connection may take before it counts as failed
	attempts      = 3
	firstPort     = 20000
)

// What the first byte of a connection asks for; of a datagram, only where.
const (
	askSink  = 'S' // read until the client has finished, answer with the number of bytes
	askEcho  = 'E' // answer each request with itself
	askOnce  = 'C' // answer with one byte
	askWhere = 'W' // answer with the node's name
)

type call struct{ number, a, b, c, d, e, f uintptr }

func raw(c call) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(c.number, c.a, c.b, c.c, c.d, c.e, c.f)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

func read(fd int, p []byte) (int, syscall.Errno) {
	return raw(call{number: syscall.SYS_READ, a: uintptr(fd), b: uintptr(unsafe.Pointer(&p[0])), c: uintptr(len(p))})
}

func write(fd int, p []byte) (int, syscall.Errno) {
	return raw(call{number: syscall.SYS_WRITE, a: uintptr(fd), b: uintptr(unsafe.Pointer(&p[0])), c: uintptr(len(p))})
}

func readFull(fd int, p []byte) syscall.Errno {
	for len(p) > 0 {
		n, errno := read(fd, p)
		if errno != 0 {
			return errno
		}
		if n == 0 {
			return syscall.ECONNRESET
		}
		p = p[n:]
	}
	return 0
}

func closeFD(fd int) { raw(call{number: syscall.SYS_CLOSE, a: uintptr(fd)}) }

func check(err error, what string) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "load: %s: %v\n", what, err)
		os.Exit(1)
	}
}

func checked(errno syscall.Errno, what string) {
	if errno != 0 {
		check(errno, what)
	}
}

// thread runs f on a thread of its own.
func thread(group *sync.WaitGroup, f func()) {
	group.Add(1)
	go func() {
		runtime.LockOSThread()
		defer group.Done()
		f()
	}()
}

func parse(target string) syscall.SockaddrInet4 {
	address, err := netip.ParseAddrPort(target)
	check(err, target)
	return syscall.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}
}

func rawAddress(a *syscall.SockaddrInet4) syscall.RawSockaddrInet4 {
	port := uint16(a.Port)<<8 | uint16(a.Port)>>8 // network order on the little-endian machines there are
	return syscall.RawSockaddrInet4{Family: syscall.AF_INET, Port: port, Addr: a.Addr}
}

// dial makes a connected socket that gives up after patience.
func dial(kind int, address *syscall.RawSockaddrInet4) (int, syscall.Errno) {
	fd, errno := raw(call{number: syscall.SYS_SOCKET, a: syscall.AF_INET, b: uintptr(kind)})
	if errno != 0 {
		return -1, errno
	}
	limit := syscall.Timeval{Sec: patience}
	for _, option := range []uintptr{syscall.SO_RCVTIMEO, syscall.SO_SNDTIMEO} {
		raw(call{number: syscall.SYS_SETSOCKOPT, a: uintptr(fd), b: syscall.SOL_SOCKET, c: option,
			d: uintptr(unsafe.Pointer(&limit)), e: unsafe.Sizeof(limit)})
	}
	errno = connect(fd, address)
	if errno != 0 {
		closeFD(fd)
		return -1, errno
	}
	return fd, 0
}

func connect(fd int, address *syscall.RawSockaddrInet4) syscall.Errno {
	_, errno := raw(call{number: syscall.SYS_CONNECT, a: uintptr(fd), b: uintptr(unsafe.Pointer(address)),
		c: unsafe.Sizeof(*address)})
	return errno
}

// ask makes a connection and says what it wants of it.
func ask(address *syscall.RawSockaddrInet4, what byte) int {
	fd, errno := dial(syscall.SOCK_STREAM, address)
	checked(errno, "connect")
	checked(noDelay(fd), "TCP_NODELAY")
	_, errno = write(fd, []byte{what})
	checked(errno, "write")
	return fd
}

func noDelay(fd int) syscall.Errno {
	on := int32(1)
	_, errno := raw(call{number: syscall.SYS_SETSOCKOPT, a: uintptr(fd), b: syscall.IPPROTO_TCP,
		c: syscall.TCP_NODELAY, d: uintptr(unsafe.Pointer(&on)), e: unsafe.Sizeof(on)})
	return errno
}

// Servers.

func serve(port int, name byte) {
	listener, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	check(err, "socket")
	check(syscall.SetsockoptInt(listener, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1), "SO_REUSEADDR")
	check(syscall.Bind(listener, &syscall.SockaddrInet4{Port: port}), "bind")
	check(syscall.Listen(listener, 4096), "listen")
	datagrams, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	check(err, "socket")
	check(syscall.Bind(datagrams, &syscall.SockaddrInet4{Port: port}), "bind")
	var group sync.WaitGroup
	for range serverThreads {
		buffer := make([]byte, bufferSize)
		thread(&group, func() {
			for {
				fd, errno := raw(call{number: syscall.SYS_ACCEPT4, a: uintptr(listener)})
				if errno == 0 {
					answer(fd, buffer)
					closeFD(fd)
				}
			}
		})
	}
	thread(&group, func() { receive(datagrams, name) })
	group.Wait()
}

func answer(fd int, buffer []byte) {
	if readFull(fd, buffer[:1]) != 0 {
		return
	}
	switch buffer[0] {
	case askOnce:
		write(fd, buffer[:1])
		read(fd, buffer[:1]) // the client closes first: the waiting (TIME_WAIT) is its
	case askEcho:
		noDelay(fd)
		for readFull(fd, buffer[:small]) == 0 {
			write(fd, buffer[:small])
		}
	case askSink:
		var total uint64
		for {
			n, errno := read(fd, buffer)
			if errno != 0 {
				return
			}
			if n == 0 {
				break
			}
			total += uint64(n)
		}
		for i := range 8 {
			buffer[i] = byte(total >> (8 * i))
		}
		write(fd, buffer[:8])
	}
}

// receive reads datagrams, and answers from the address that was asked (IP_PKTINFO).
func receive(fd int, name byte) {
	check(syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1), "IP_PKTINFO")
	buffer, control := make([]byte, 2048), make([]byte, 128)
	var from syscall.RawSockaddrInet4
	part := syscall.Iovec{Base: &buffer[0]}
	header := syscall.Msghdr{Name: (*byte)(unsafe.Pointer(&from)), Iov: &part, Iovlen: 1, Control: &control[0]}
	message := call{a: uintptr(fd), b: uintptr(unsafe.Pointer(&header))}
	for {
		header.Namelen, header.Controllen, part.Len = uint32(unsafe.Sizeof(from)), uint64(len(control)), uint64(len(buffer))
		message.number = syscall.SYS_RECVMSG
		n, errno := raw(message)
		if errno == 0 && n > 0 && buffer[0] == askWhere {
			buffer[0], part.Len = name, 1
			message.number = syscall.SYS_SENDMSG
			raw(message)
		}
	}
}

// Clients.

type result map[string]any

func each(count int, targets []syscall.RawSockaddrInet4, f func(number int, target *syscall.RawSockaddrInet4)) {
	var group sync.WaitGroup
	for i := range count {
		thread(&group, func() { f(i, &targets[i%len(targets)]) })
	}
	group.Wait()
}

func stream(limit time.Duration, count int, targets []syscall.RawSockaddrInet4) result {
	fds := make([]int, count)
	for i := range fds {
		fds[i] = ask(&targets[i%len(targets)], askSink)
	}
	var total atomic.Uint64
	start := time.Now()
	each(count, targets, func(i int, _ *syscall.RawSockaddrInet4) {
		buffer := make([]byte, bufferSize)
		for time.Since(start) < limit {
			_, errno := write(fds[i], buffer)
			checked(errno, "write")
		}
		check(syscall.Shutdown(fds[i], syscall.SHUT_WR), "shutdown")
		checked(readFull(fds[i], buffer[:8]), "the number of bytes that arrived")
		var arrived uint64
		for k := range 8 {
			arrived |= uint64(buffer[k]) << (8 * k)
		}
		total.Add(arrived)
	})
	return result{"bytes": total.Load(), "seconds": time.Since(start).Seconds()}
}

func connections(limit time.Duration, count int, targets []syscall.RawSockaddrInet4) result {
	var done, failed atomic.Uint64
	var mutex sync.Mutex
	errors := map[string]int{}
	start := time.Now()
	each(count, targets, func(i int, _ *syscall.RawSockaddrInet4) {
		question, reply := []byte{askOnce}, make([]byte, 1)
		for turn := i; time.Since(start) < limit; turn++ {
			fd, errno := dial(syscall.SOCK_STREAM, &targets[turn%len(targets)])
			if errno == 0 {
				if _, errno = write(fd, question); errno == 0 {
					errno = readFull(fd, reply)
				}
				closeFD(fd)
			}
			if errno == 0 {
				done.Add(1)
				continue
			}
			failed.Add(1)
			mutex.Lock()
			errors[errno.Error()]++
			mutex.Unlock()
		}
	})
	return result{"connections": done.Load(), "failed": failed.Load(), "errors": errors,
		"seconds": time.Since(start).Seconds()}
}

func roundtrip(limit time.Duration, targets []syscall.RawSockaddrInet4) result {
	fd := ask(&targets[0], askEcho)
	buffer := make([]byte, small)
	spent := make([]time.Duration, 0, 1<<20)
	for start := time.Now(); time.Since(start) < limit; {
		sent := time.Now()
		_, errno := write(fd, buffer)
		checked(errno, "write")
		checked(readFull(fd, buffer), "read")
		spent = append(spent, time.Since(sent))
	}
	slices.Sort(spent)
	at := func(share float64) float64 {
		return float64(spent[min(len(spent)-1, int(float64(len(spent))*share))].Nanoseconds()) / 1000
	}
	return result{"count": len(spent), "p50": at(.5), "p99": at(.99)}
}

func datagrams(limit time.Duration, count int, targets []syscall.RawSockaddrInet4) result {
	fds := make([]int, count)
	for i := range fds {
		var errno syscall.Errno
		fds[i], errno = dial(syscall.SOCK_DGRAM, &targets[i%len(targets)])
		checked(errno, "connect")
	}
	buffer := make([]byte, small)
	sent := 0
	start := time.Now()
	for time.Since(start) < limit {
		for _, fd := range fds {
			if _, errno := write(fd, buffer); errno == 0 {
				sent++
			}
		}
	}
	return result{"sent": sent, "seconds": time.Since(start).Seconds()}
}

func where(count int, targets []syscall.RawSockaddrInet4) result {
	names := make([]string, count)
	question, reply := []byte{askWhere}, make([]byte, 1)
	limit := syscall.Timeval{Usec: 200_000}
	for i := range names {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
		check(err, "socket")
		check(syscall.Bind(fd, &syscall.SockaddrInet4{Port: firstPort + i}), "bind")
		check(syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit), "SO_RCVTIMEO")
		checked(connect(fd, &targets[i%len(targets)]), "connect")
		for range attempts {
			write(fd, question)
			if _, errno := read(fd, reply); errno == 0 {
				names[i] = string(reply)
				break
			}
		}
		closeFD(fd)
	}
	return result{"names": names}
}

func main() {
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(2 * serverThreads)
	runtime.LockOSThread()
	if len(os.Args) == 4 && os.Args[1] == "serve" {
		port, err := strconv.Atoi(os.Args[2])
		check(err, "port")
		serve(port, os.Args[3][0])
	}
	if len(os.Args) != 5 {
		check(syscall.EINVAL, "load serve PORT NAME, or load WHAT SECONDS COUNT TARGETS")
	}
	seconds, err := strconv.ParseFloat(os.Args[2], 64)
	check(err, "seconds")
	count, err := strconv.Atoi(os.Args[3])
	check(err, "count")
	limit := time.Duration(seconds * float64(time.Second))
	targets := []syscall.RawSockaddrInet4{}
	for _, target := range strings.Split(os.Args[4], ",") {
		address := parse(target)
		targets = append(targets, rawAddress(&address))
	}
	var found result
	switch os.Args[1] {
	case "stream":
		found = stream(limit, count, targets)
	case "connect":
		found = connections(limit, count, targets)
	case "roundtrip":
		found = roundtrip(limit, targets)
	case "datagrams":
		found = datagrams(limit, count, targets)
	case "where":
		found = where(count, targets)
	default:
		check(syscall.EINVAL, os.Args[1])
	}
	check(json.NewEncoder(os.Stdout).Encode(found), "stdout")
}
