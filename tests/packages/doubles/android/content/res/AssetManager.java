package android.content.res;

import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.util.Arrays;

/** See Context. Counts how often the asset was read as a stream. */
public final class AssetManager {
    public int streams;
    private final File apk;
    private final long offset;
    private final long length;
    private final boolean compressed;

    public AssetManager(File apk, long offset, long length, boolean compressed) {
        this.apk = apk;
        this.offset = offset;
        this.length = length;
        this.compressed = compressed;
    }

    public synchronized InputStream open(String fileName) throws IOException {
        check(fileName);
        streams++;
        byte[] all = Files.readAllBytes(apk.toPath());
        return new ByteArrayInputStream(
                Arrays.copyOfRange(all, (int) offset, (int) (offset + length)));
    }

    public AssetFileDescriptor openFd(String fileName) throws IOException {
        check(fileName);
        if (compressed) {
            throw new FileNotFoundException("This file can not be opened as a file descriptor");
        }
        return new AssetFileDescriptor(new FileInputStream(apk), offset, length);
    }

    private static void check(String fileName) throws IOException {
        if (!fileName.equals("digits.bin")) {
            throw new FileNotFoundException(fileName);
        }
    }
}
