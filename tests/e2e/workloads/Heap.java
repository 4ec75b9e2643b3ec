// A Java heap that checks itself: threads keep replacing entries whose content follows from key and version, the collector moves
// all of it about, and every entry that is read is compared.
//
//     java Heap DIR
//
// Writes DIR/jvm.json several times a second; a word in DIR/verify asks for a comparison of everything, after a full collection,
// and DIR/report.json then carries it. A wrong entry ends the program, with DIR/failure.json.

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.Random;
import java.util.concurrent.atomic.AtomicLong;

public final class Heap {
    private static final int ENTRIES = 3000;
    private static final AtomicLong checked = new AtomicLong();
    private static final AtomicLong replaced = new AtomicLong();
    private static Path dir;

    /** Entries of one thread: big ones, and small ones that the collector copies often. */
    private static final class Owner extends Thread {
        private final int number;
        private final long[][] entries = new long[ENTRIES][];
        private final int[] versions = new int[ENTRIES];
        volatile int asked;
        volatile int done;

        Owner(int number) {
            this.number = number;
            setDaemon(true);
        }

        private long seed(int at, int version) {
            return ((long) number << 56) ^ ((long) at << 32) ^ version;
        }

        private void replace(int at) {
            int version = versions[at] + 1;
            long[] fresh = new long[at % 7 == 0 ? 1024 : 32];
            Random random = new Random(seed(at, version));
            for (int i = 0; i < fresh.length; i++) {
                fresh[i] = random.nextLong();
            }
            entries[at] = fresh;
            versions[at] = version;
            replaced.incrementAndGet();
        }

        private void check(int at) {
            Random random = new Random(seed(at, versions[at]));
            for (long word : entries[at]) {
                if (word != random.nextLong()) {
                    throw new IllegalStateException("entry " + at + " of thread " + number + " is not version " + versions[at]);
                }
            }
            checked.incrementAndGet();
        }

        @Override
        public void run() {
            try {
                for (int at = 0; at < ENTRIES; at++) {
                    replace(at);
                }
                Random random = new Random(number);
                while (true) {
                    for (int i = 0; i < 20; i++) {
                        check(random.nextInt(ENTRIES));
                        replace(random.nextInt(ENTRIES));
                    }
                    if (asked != done) {
                        for (int at = 0; at < ENTRIES; at++) {
                            check(at);
                        }
                        done = asked;
                    }
                    Thread.sleep(2);
                }
            } catch (Throwable error) {
                fail(error);
            }
        }
    }

    private static void fail(Throwable error) {
        try {
            write("failure.json", "{\"ok\": false, \"reason\": \"" + String.valueOf(error).replace('"', '\'') + "\"}");
        } catch (IOException again) {
            // The exit code says it too.
        }
        Runtime.getRuntime().halt(1);
    }

    private static void write(String name, String text) throws IOException {
        Path fresh = dir.resolve(name + ".new");
        Files.writeString(fresh, text + "\n");
        Files.move(fresh, dir.resolve(name), StandardCopyOption.REPLACE_EXISTING, StandardCopyOption.ATOMIC_MOVE);
    }

    private static String status(String token) {
        return "{\"ok\": true, \"token\": \"" + token + "\", \"checked\": " + checked.get() + ", \"replaced\": " + replaced.get()
            + ", \"unix_ms\": " + System.currentTimeMillis() + "}";
    }

    public static void main(String[] arguments) {
        dir = Path.of(arguments[0]);
        Owner[] owners = {new Owner(1), new Owner(2)};
        for (Owner owner : owners) {
            owner.start();
        }
        try {
            String token = "";
            Path verify = dir.resolve("verify");
            while (true) {
                Thread.sleep(100);
                write("jvm.json", status(token));
                String asked = Files.exists(verify) ? Files.readString(verify).trim() : token;
                if (!asked.isEmpty() && !asked.equals(token)) {
                    System.gc();
                    for (Owner owner : owners) {
                        owner.asked++;
                    }
                    for (Owner owner : owners) {
                        while (owner.done != owner.asked) {
                            Thread.sleep(5);
                        }
                    }
                    token = asked;
                    write("report.json", status(token));
                }
            }
        } catch (Throwable error) {
            fail(error);
        }
    }
}
